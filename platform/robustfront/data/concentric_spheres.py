"""Two classes on two spheres around one point."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from robustfront.data.base import DATA, DataConfig, Images, Labels, RawData
from robustfront.randomness import seed_of

Length = Annotated[float, Field(gt=0, le=0.5)]


@DATA.register
class ConcentricSpheres(DataConfig):
    """x = 1/2 + r_y u, u uniform on the unit sphere, r_0 = `inner`, r_1 = `outer`.

    The l2 margin of the best classifier is (outer - inner) / 2.

    Source: arXiv:1801.02774; as the second synthetic distribution of arXiv:2306.06995, whose
    constants are not published where we could read them, so all are settings here.

    Args:
        dimension: d, pixels.
        inner, outer: radii, in [0, 1] pixel units; the spheres lie in the box.
        train_examples, test_examples: how many are drawn.
        seed: of the draw.
    """

    type: Literal["concentric_spheres"] = "concentric_spheres"
    dimension: Annotated[int, Field(ge=2)] = 100
    inner: Length = 0.3
    outer: Length = 0.5
    train_examples: PositiveInt = 5000
    test_examples: PositiveInt = 2000
    seed: NonNegativeInt = 0

    @model_validator(mode="after")
    def _one_inside_the_other(self) -> Self:
        if self.inner >= self.outer:
            raise ValueError(f"inner: got {self.inner:g}, outer is only {self.outer:g}")
        return self

    @property
    def shape(self) -> tuple[int, int, int]:
        """One row of `dimension` pixels."""
        return (1, 1, self.dimension)

    @property
    def classes(self) -> int:
        """Two."""
        return 2

    @property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """None: distances stay what they are, from the middle of the box."""
        return (0.5,), (1.0,)

    def load(self) -> RawData:
        """Drawn from the seed alone."""
        train = self._drawn(self.train_examples, "train")
        test = self._drawn(self.test_examples, "test")
        return RawData(*train, *test, scale=1)

    def _drawn(self, n: int, part: str) -> tuple[Images, Labels]:
        source = np.random.Generator(
            np.random.PCG64(seed_of("concentric_spheres", self.seed, part))
        )
        y = source.integers(0, 2, n)
        u = source.standard_normal((n, self.dimension))
        u /= np.linalg.norm(u, axis=1, keepdims=True)
        x = 0.5 + np.where(y == 1, self.outer, self.inner)[:, None] * u
        return x.reshape(n, 1, 1, -1).astype(np.float32), y.astype(np.int64)
