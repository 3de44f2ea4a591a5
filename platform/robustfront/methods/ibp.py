"""Interval bound propagation as a training objective."""

from typing import Literal

from robustfront.methods.base import METHODS
from robustfront.methods.bounding import Bounding


@METHODS.register
class IBPTraining(Bounding):
    """IBP: the cross-entropy at the least margins that interval bounds leave.

    robust = mean log sum_k exp(-m_k), m_k lower bounds of z_y - z_k over the whole threat, m_y = 0.

    `regularise` and `fast_init` are those of the fast variant; a `train.eps_ramp` is needed, and
    `train.clip_norm: 10` usual. linf, l2 (by the dual norm of the first layer), l1 and mixes.
    Batch norm: one pass of x, whose statistics the bounds use too.
    Source: arXiv:1810.12715, equation 11; initialisation and regularisers arXiv:2103.17268.
    Official code: shizhouxing/Fast-Certified-Robust-Training.
    Deviates: as `Bounding` does.
    """

    type: Literal["ibp"] = "ibp"

    @property
    def forward_equivalents(self) -> float:
        """Clean, centre and radius forward, and a full backward of each."""
        return 9
