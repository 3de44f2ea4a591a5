"""Adversarial and interval losses added."""

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor, nn

from robustfront.attacks import PGD, AttackField
from robustfront.certifiers.propagation import Region
from robustfront.methods.base import METHODS, StepContext
from robustfront.methods.bounding import Bounding, Share, points, searched, verified_ce, whole


@METHODS.register
class MTLIBP(Bounding):
    """MTL-IBP: a weighted mean of the adversarial cross-entropy and the one at interval bounds.

    robust = (1 - weight) mean CE(f(x_adv), y) + weight mean log sum_k exp(-m_k). weight = 1 is IBP,
    weight = 0 adversarial training.

    Batch norm: one pass of x, whose statistics attacked inputs and bounds use too; the search runs
    in eval mode.
    Source: arXiv:2305.13991, equation 8. Official code: alessandrodepalma/expressive-losses.
    Deviates: the attack is given the threat's own radius.
    """

    type: Literal["mtl_ibp"] = "mtl_ibp"
    weight: Share = 0.02  # of the bounds
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
        """`robust`, `adversarial_ce` and `verified_ce`."""
        adversarial, verified = (verified_ce(m).mean() for m in margins)
        robust = (1 - self.weight) * adversarial + self.weight * verified
        return {"robust": robust, "adversarial_ce": adversarial, "verified_ce": verified}
