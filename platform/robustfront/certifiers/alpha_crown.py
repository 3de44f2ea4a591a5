"""alpha-CROWN: linear bounds whose lower slopes are optimised."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt
from torch import nn

from robustfront.certifiers.base import CERTIFIERS, Certifier, Lower
from robustfront.certifiers.relaxation import Relaxation


@CERTIFIERS.register
class AlphaCROWN(Certifier):
    """CROWN with the slopes below unstable ReLUs found by gradient ascent on the bounds.

    Where the device has too little memory for it, the bounds are those of CROWN, and a warning says
    so. Source: arXiv:2011.13824. Computed by auto_LiRPA.
    """

    type: Literal["alpha_crown"] = "alpha_crown"
    steps: PositiveInt = 20

    @property
    def name(self) -> str:
        """`alpha_crown20`: with the number of steps."""
        return f"alpha_crown{self.steps}"

    def prepare(self, model: nn.Module) -> Lower:
        """The model is translated once."""
        return Relaxation(model, self.steps).using("CROWN-Optimized")
