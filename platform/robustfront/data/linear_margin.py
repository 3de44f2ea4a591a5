"""Two classes on either side of a plane, in many dimensions."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from robustfront.data.base import DATA, Labels
from robustfront.data.drawn import Drawn, Length


@DATA.register
class LinearMargin(Drawn):
    """x = 1/2 + (margin * (2 y - 1), z), z normal with deviation `sigma`, cut by the box [0, 1].

    y is 0 or 1. The first coordinate alone tells the class: the best classifier is robust within
    any lp ball of a radius below `margin`, with no error at all; all others are noise.

    Source: the synthetic distribution of arXiv:2306.06995; its constants are not published where
    we could read them, so all are settings here.

    Args:
        margin: distance of both classes from the plane, in [0, 1] pixel units.
        sigma: deviation of the other coordinates, likewise.
    """

    type: Literal["linear_margin"] = "linear_margin"
    margin: Length = 0.1
    sigma: Length = 0.1

    def points(self, y: Labels, source: np.random.Generator) -> npt.NDArray[np.float64]:
        """One point (N, d) for each label (N,)."""
        x = 0.5 + self.sigma * source.standard_normal((len(y), self.dimension))
        x[:, 0] = 0.5 + self.margin * (2 * y - 1)
        return x.clip(0, 1)
