"""Optimisers: torch's own, with the settings a job may name."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import nn

from robustfront.registry import Component, Registry


class OptimizerConfig(Component):
    """An optimiser; `lr` is multiplied by the schedule's factor at every step."""

    lr: PositiveFloat = 0.1
    weight_decay: NonNegativeFloat = 0.0

    @abstractmethod
    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimiser of all parameters of the model."""


OPTIMIZERS: Registry[OptimizerConfig] = Registry("optimizer")


@OPTIMIZERS.register
class SGD(OptimizerConfig):
    """Stochastic gradient descent with momentum."""

    type: Literal["sgd"] = "sgd"
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = False

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """torch.optim.SGD; Nesterov's form only where there is momentum."""
        return torch.optim.SGD(
            model.parameters(),
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov and self.momentum > 0,
        )


@OPTIMIZERS.register
class Adam(OptimizerConfig):
    """Adam with decoupled weight decay (AdamW; plain Adam at weight decay 0)."""

    type: Literal["adam"] = "adam"
    lr: PositiveFloat = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """torch.optim.AdamW."""
        return torch.optim.AdamW(
            model.parameters(), lr=self.lr, betas=self.betas, weight_decay=self.weight_decay
        )


if TYPE_CHECKING:
    OptimizerField = OptimizerConfig
else:
    OptimizerField = OPTIMIZERS.field()
