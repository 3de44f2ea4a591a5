"""Targeted Auto-PGD."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from robustfront.attacks.apgd import Ascent, climb
from robustfront.attacks.base import ATTACKS, Attack, Surrogate, best_of, goal_of
from robustfront.attacks.goals import TargetedDLR
from robustfront.randomness import Rng
from robustfront.threats import PerturbationSet


@ATTACKS.register
class TargetedAPGD(Attack):
    """Auto-PGD on the targeted difference of logits ratio, towards one wrong class after another.

    The `targets` classes with the largest logits at x, the label left out, in that order; an
    example counts as fooled by whatever wrong class. `shrinking_radius` is that of `apgd`.

    Source: arXiv:2003.01690, section 4.1 and equation 7.
    """

    type: Literal["apgd_t"] = "apgd_t"
    steps: PositiveInt = 100
    targets: PositiveInt = 9
    shrinking_radius: bool = False

    @property
    def name(self) -> str:
        """`apgd100_t9`."""
        return f"apgd{self.steps}_t{self.targets}"

    @property
    def forward_equivalents(self) -> float:
        """Auto-PGD for each target, for examples that are never fooled."""
        return 1 + self.targets * (2 * self.steps + 2)

    @property
    def needs_labels(self) -> bool:
        """Targets are wrong classes."""
        return True

    def search(
        self,
        model: nn.Module,
        x: Tensor,
        surrogate: Surrogate,
        threat: PerturbationSet,
        rng: Rng,
    ) -> Tensor:
        """The input with the largest cross-entropy among the best for each target."""
        goal = goal_of(self, surrogate)
        ranked = rivals(model, x, goal.y)
        ascent = Ascent(self.steps, shrinking_radius=self.shrinking_radius)

        def run(number: int, rows: Tensor | slice, rng: Rng) -> Tensor:
            aim = TargetedDLR(goal.y[rows], ranked[rows, number])
            return climb(model, x[rows], aim, threat, rng, ascent)

        return best_of(min(self.targets, ranked.shape[1]), run, model, x, goal, rng)


@torch.no_grad()
def rivals(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """All classes but the label by falling logits at x, (N, K - 1)."""
    logits = model(x).scatter(1, y[:, None], -torch.inf)
    order: Tensor = logits.argsort(dim=1, descending=True, stable=True)
    return order[:, :-1]
