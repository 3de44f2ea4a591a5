"""CROWN: linear bounds of every layer."""

from __future__ import annotations

from typing import Literal

from torch import nn

from robustfront.certifiers.base import CERTIFIERS, Certifier, Lower
from robustfront.certifiers.relaxation import Relaxation


@CERTIFIERS.register
class CROWN(Certifier):
    """Linear bounds backward from each layer to the input.

    Tight, and expensive for convolutions: a pass for every unstable unit.
    Source: arXiv:1811.00866. Computed by auto_LiRPA.
    """

    type: Literal["crown"] = "crown"

    @property
    def name(self) -> str:
        """`crown`."""
        return "crown"

    def prepare(self, model: nn.Module) -> Lower:
        """The model is translated once."""
        return Relaxation(model).using("CROWN")
