"""The contract of an update."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar

import torch
from torch import Tensor, nn

from robustfront.attacks import PGD, Attack
from robustfront.methods import LossTerms, Method, StepContext
from robustfront.registry import Component, Registry

Step = Callable[
    [nn.Module, torch.optim.Optimizer, Method, tuple[Tensor, Tensor], StepContext], LossTerms
]
"""What `Update.step` is."""

NewOptimizer = Callable[[nn.Module], torch.optim.Optimizer]
"""An optimiser with the settings of the training, for another model."""


class Update(Component):
    """Turns a method's loss on a batch into a change of the weights."""

    alone: ClassVar[bool] = False  # whether it cannot share a batch with other workers
    searches: ClassVar[bool] = False  # whether it follows gradients to adversarial inputs by itself

    @property
    def steps_per_batch(self) -> int:
        """How many times it asks for the method's loss."""
        return 1

    @property
    def own_equivalents(self) -> float:
        """What it adds to that for each example, in forward passes."""
        return 0

    def guard(self, method: Method) -> Attack | None:
        """What tells after each epoch whether training still makes robust: PGD-10 where a method
        searches in single steps, which the step itself does not tell."""
        return PGD(steps=10) if method.single_step else None

    def epoch(self, model: nn.Module, new_optimizer: NewOptimizer) -> AbstractContextManager[Step]:
        """The step for one epoch of the model; what an epoch needs before and after its steps."""
        return nullcontext(self.step)

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
