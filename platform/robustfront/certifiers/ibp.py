"""Interval bound propagation as a certifier."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from robustfront.certifiers.base import CERTIFIERS, Certifier, Lower
from robustfront.certifiers.propagation import propagate, regions_of
from robustfront.threats import Threat


@CERTIFIERS.register
class IBP(Certifier):
    """Boxes through the layers; the last layer is joined with the specification.

    Cheap, and loose unless the model was trained for it. l2 and l1 balls are bounded exactly by the
    first affine layer, and are boxes beyond it; they are not cut by the box [0, 1].

    Source: arXiv:1810.12715, equations 6 to 10.
    """

    type: Literal["ibp"] = "ibp"

    @property
    def name(self) -> str:
        """`ibp`."""
        return "ibp"

    def prepare(self, model: nn.Module) -> Lower:
        """One pass a call."""

        def lower(x: Tensor, threat: Threat, specification: Tensor) -> Tensor:
            with torch.no_grad():
                return propagate(model, regions_of(threat, x)).lower(specification)

        return lower
