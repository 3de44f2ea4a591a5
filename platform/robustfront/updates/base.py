"""The contract of an update."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from robustfront.methods import LossTerms, Method, StepContext
from robustfront.registry import Component, Registry


class Update(Component):
    """Turns a method's loss on a batch into a change of the weights."""

    alone: ClassVar[bool] = False  # whether it cannot share a batch with other workers

    @property
    def steps_per_batch(self) -> int:
        """How many times it asks for the method's loss."""
        return 1

    @abstractmethod
    def step(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        method: Method,
        batch: tuple[Tensor, Tensor],
        ctx: StepContext,
    ) -> LossTerms:
        """One step on the batch (x, y); returns the loss it was made for, detached."""


UPDATES: Registry[Update] = Registry("update")


def detached(loss: LossTerms) -> LossTerms:
    """The same values without their graph."""
    return LossTerms(
        loss.total.detach(), {name: term.detach() for name, term in loss.terms.items()}
    )
