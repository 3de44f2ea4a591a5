"""What the attacks of an evaluation make large: surrogates that know the labels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

_WRONG = 1000.0


@dataclass(frozen=True)
class Goal(ABC):
    """A loss of the logits (N, K), larger by 1000 where the prediction is wrong.

    The step has no gradient; it makes the choice among iterates and restarts prefer an input that
    is misclassified to one that is only less certain, so a longer search never finds fewer errors.

    Args:
        y: labels (N,).
    """

    y: Tensor

    @abstractmethod
    def loss(self, logits: Tensor) -> Tensor:
        """(N,), below 250 where the prediction is right."""

    def __call__(self, logits: Tensor) -> Tensor:
        """Values (N,)."""
        loss = self.loss(logits)
        wrong = logits.argmax(1) != self.y
        return torch.where(wrong, _WRONG + loss.clamp(min=-_WRONG / 4), loss)

    def fooled(self, values: Tensor) -> Tensor:
        """Whether the values are those of wrong predictions, (N,)."""
        return values > _WRONG / 2

    def rows(self, index: Tensor | slice) -> Self:
        """The goal of some of the examples."""
        return replace(self, y=self.y[index])


@dataclass(frozen=True)
class Misclassification(Goal):
    """Cross-entropy to the labels."""

    def loss(self, logits: Tensor) -> Tensor:
        """-log p_y."""
        return F.cross_entropy(logits, self.y, reduction="none")


@dataclass(frozen=True)
class Margin(Goal):
    """How far the best wrong class is above the label."""

    def loss(self, logits: Tensor) -> Tensor:
        """max_{k != y} z_k - z_y."""
        rivals = logits.scatter(1, self.y[:, None], -torch.inf)
        return rivals.amax(1) - _of_class(logits, self.y)


@dataclass(frozen=True)
class DifferenceOfLogitsRatio(Margin):
    """The margin in units of the gap between the first and the third logit.

    Does not change when the logits are shifted or scaled, so no scale of the last layer hides the
    gradient. With two classes there is no third logit, and it is the margin.

    Source: arXiv:2003.01690, equation 6.
    """

    def loss(self, logits: Tensor) -> Tensor:
        """-(z_y - max_{k != y} z_k) / (z_(1) - z_(3))."""
        margin = super().loss(logits)
        if logits.shape[1] < 3:
            return margin
        top = logits.topk(3, dim=1).values
        return margin / (top[:, 0] - top[:, 2] + 1e-12)


@dataclass(frozen=True)
class TargetedDLR(Goal):
    """How far one wrong class is above the label, in units of a gap between the first logits.

    With fewer than four classes the fourth logit is missing, and it is the plain difference.

    Args:
        target: a wrong class for each example, (N,).

    Source: arXiv:2003.01690, equation 7.
    """

    target: Tensor

    def loss(self, logits: Tensor) -> Tensor:
        """-(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2)."""
        difference = _of_class(logits, self.target) - _of_class(logits, self.y)
        if logits.shape[1] < 4:
            return difference
        top = logits.topk(4, dim=1).values
        return difference / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)

    def rows(self, index: Tensor | slice) -> Self:
        """The goal of some of the examples."""
        return replace(self, y=self.y[index], target=self.target[index])


def _of_class(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes[:, None])[:, 0]
