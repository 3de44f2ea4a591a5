"""Adversarial and interval losses added."""

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor

from robustfront.methods.base import METHODS, StepContext
from robustfront.methods.bounding import Mixing, Share, verified_ce


@METHODS.register
class MTLIBP(Mixing):
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

    def robust(self, margins: Sequence[Tensor], ctx: StepContext) -> Mapping[str, Tensor]:
        """`robust`, `adversarial_ce` and `verified_ce`."""
        adversarial, verified = (verified_ce(m).mean() for m in margins)
        robust = (1 - self.weight) * adversarial + self.weight * verified
        return {"robust": robust, "adversarial_ce": adversarial, "verified_ce": verified}
