"""Adversarial and interval margins mixed."""

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor, nn

from robustfront.attacks import PGD, AttackField
from robustfront.certifiers.propagation import Region
from robustfront.methods.base import METHODS, StepContext
from robustfront.methods.bounding import Bounding, Share, points, searched, verified_ce, whole


@METHODS.register
class CCIBP(Bounding):
    """CC-IBP: the cross-entropy at convex combinations of attacked margins and interval bounds.

    robust = mean log sum_k exp(-((1 - weight) m_adv_k + weight m_k)). weight = 1 is IBP, weight = 0
    adversarial training.

    Batch norm: one pass of x, whose statistics attacked inputs and bounds use too; the search runs
    in eval mode.
    Source: arXiv:2305.13991, equation 6. Official code: alessandrodepalma/expressive-losses.
    Deviates: the attack is given the threat's own radius.
    """

    type: Literal["cc_ibp"] = "cc_ibp"
    weight: Share = 0.1  # of the bounds
    inner: AttackField = PGD(steps=8, rel_step_size=0.25)

    @property
    def forward_equivalents(self) -> float:
        """The search; clean, attacked input and bounds, each with centre and radius."""
        return self.inner.forward_equivalents + 18

    def regions(
        self, model: nn.Module, x: Tensor, y: Tensor, ctx: StepContext
    ) -> list[list[Region]]:
        """An input that the attack finds, and everything that the threat allows."""
        found = searched(self.inner, model, x, y, ctx)
        return [points(found), whole(ctx.threat, x)]

    def robust(self, margins: Sequence[Tensor], ctx: StepContext) -> Mapping[str, Tensor]:
        """`robust` alone."""
        attacked, bounded = margins
        return {"robust": verified_ce((1 - self.weight) * attacked + self.weight * bounded).mean()}
