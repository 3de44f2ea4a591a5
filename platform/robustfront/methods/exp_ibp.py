"""Adversarial and interval losses multiplied."""

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor

from robustfront.methods.base import METHODS, StepContext
from robustfront.methods.bounding import Mixing, Share, verified_ce


@METHODS.register
class ExpIBP(Mixing):
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

    def robust(self, margins: Sequence[Tensor], ctx: StepContext) -> Mapping[str, Tensor]:
        """`robust`, `adversarial_ce` and `verified_ce`."""
        adversarial, verified = (verified_ce(m).clamp(min=1e-12) for m in margins)
        robust = (adversarial.log() * (1 - self.weight) + verified.log() * self.weight).exp()
        return {
            "robust": robust.mean(),
            "adversarial_ce": adversarial.mean(),
            "verified_ce": verified.mean(),
        }
