"""The contract of a training method: a loss on one batch, with its terms by name."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from robustfront.randomness import Rng
from robustfront.registry import Component, Registry
from robustfront.threats import PerturbationSet


@dataclass(frozen=True)
class LossTerms:
    """A loss and its parts.

    Args:
        total: what is minimised, a scalar.
        terms: its parts by name, scalars, before their weights; logged and tested by name.
    """

    total: Tensor
    terms: Mapping[str, Tensor]


@dataclass(frozen=True)
class StepContext:
    """What a method may know about the step it is in.

    Args:
        threat: the perturbation sets of this batch, at the radius scheduled for now.
        rng: randomness of this step, one row an example.
        progress: share of the training done, in [0, 1].
    """

    threat: PerturbationSet
    rng: Rng
    progress: float


class Method(Component):
    """A training method; its fields are its hyperparameters."""

    @property
    @abstractmethod
    def forward_equivalents(self) -> float:
        """Cost of a step for each example in forward passes (a full backward counts as two)."""

    @abstractmethod
    def loss(self, model: nn.Module, x: Tensor, y: Tensor, ctx: StepContext) -> LossTerms:
        """The loss of a batch x (N, C, H, W) in [0, 1], y (N,); the model is in train mode."""

    def derived(self) -> dict[str, float]:
        """Values that follow from the fields and are logged beside them."""
        return {}


METHODS: Registry[Method] = Registry("method")


def kl_divergence(log_p: Tensor, logits: Tensor) -> Tensor:
    """KL(p || softmax(logits)) of each example, (N,), both sides differentiable.

    Computed from log-probabilities: with torch's kl_div the gradient to a target that underflows
    to 0 is NaN.
    """
    return (log_p.exp() * (log_p - F.log_softmax(logits, dim=1))).sum(dim=1)
