"""CROWN-IBP: linear bounds of the last layer over interval bounds of the others."""

from __future__ import annotations

from typing import Literal

from torch import nn

from robustfront.certifiers.base import CERTIFIERS, Certifier, Lower
from robustfront.certifiers.relaxation import Relaxation


@CERTIFIERS.register
class CROWNIBP(Certifier):
    """One backward pass of linear bounds, with interval bounds of the layers before.

    Source: arXiv:1906.06316, section 3. Computed by auto_LiRPA.
    """

    type: Literal["crown_ibp"] = "crown_ibp"

    @property
    def name(self) -> str:
        """`crown_ibp`."""
        return "crown_ibp"

    def prepare(self, model: nn.Module) -> Lower:
        """The model is translated once."""
        return Relaxation(model).using("CROWN-IBP")
