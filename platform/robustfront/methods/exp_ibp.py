"""Adversarial and interval losses multiplied."""

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor, nn

from robustfront.attacks import PGD, AttackField
from robustfront.certifiers.propagation import Region
from robustfront.methods.base import METHODS, StepContext
from robustfront.methods.bounding import Bounding, Share, points, searched, verified_ce, whole


@METHODS.register
class ExpIBP(Bounding):
    """Exp-IBP: a geometric mean of the adversarial cross-entropy and the one at interval bounds.

    robust = mean CE(f(x_adv), y)^(1 - weight) (log sum_k exp(-m_k))^weight. weight = 1 is IBP,
    weight = 0 adversarial training.

    Batch norm: one pass of x, whose statistics attacked inputs and bounds use too; the search runs
    in eval mode.
    Source: arXiv:2305.13991, equation 10. Official code: alessandrodepalma/expressive-losses.
    Deviates: the attack is given the threat's own radius.
    """

    type: Literal["exp_ibp"] = "exp_ibp"
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
        """`robust`, `adversarial_ce` and `verified_ce`."""
        adversarial, verified = (verified_ce(m).clamp(min=1e-12) for m in margins)
        robust = (adversarial.log() * (1 - self.weight) + verified.log() * self.weight).exp()
        return {
            "robust": robust.mean(),
            "adversarial_ce": adversarial.mean(),
            "verified_ce": verified.mean(),
        }
