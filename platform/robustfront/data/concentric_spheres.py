"""Two classes on two spheres around one point."""

from __future__ import annotations

from typing import Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import model_validator

from robustfront.data.base import DATA, Labels
from robustfront.data.drawn import Drawn, Length


@DATA.register
class ConcentricSpheres(Drawn):
    """x = 1/2 + r_y u, u uniform on the unit sphere, r_0 = `inner`, r_1 = `outer`.

    The l2 margin of the best classifier is (outer - inner) / 2.

    Source: arXiv:1801.02774; as the second synthetic distribution of arXiv:2306.06995, whose
    constants are not published where we could read them, so all are settings here.

    Args:
        inner, outer: radii, in [0, 1] pixel units; the spheres lie in the box.
    """

    type: Literal["concentric_spheres"] = "concentric_spheres"
    inner: Length = 0.3
    outer: Length = 0.5

    @model_validator(mode="after")
    def _one_inside_the_other(self) -> Self:
        if self.inner >= self.outer:
            raise ValueError(f"inner: got {self.inner:g}, outer is only {self.outer:g}")
        return self

    def points(self, y: Labels, source: np.random.Generator) -> npt.NDArray[np.float64]:
        """One point (N, d) for each label (N,)."""
        u = source.standard_normal((len(y), self.dimension))
        u /= np.linalg.norm(u, axis=1, keepdims=True)
        moved: npt.NDArray[np.float64] = np.where(y == 1, self.outer, self.inner)[:, None] * u
        return 0.5 + moved
