"""Adversarial and interval margins mixed."""

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor

from robustfront.methods.base import METHODS, StepContext
from robustfront.methods.bounding import Mixing, Share, verified_ce


@METHODS.register
class CCIBP(Mixing):
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

    def robust(self, margins: Sequence[Tensor], ctx: StepContext) -> Mapping[str, Tensor]:
        """`robust` alone."""
        attacked, bounded = margins
        return {"robust": verified_ce((1 - self.weight) * attacked + self.weight * bounded).mean()}
