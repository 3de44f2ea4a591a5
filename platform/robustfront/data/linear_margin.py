"""Two classes on either side of a plane, in many dimensions."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt

from robustfront.data.base import DATA, DataConfig, Images, Labels, RawData
from robustfront.randomness import seed_of

Length = Annotated[float, Field(gt=0, le=0.5)]


@DATA.register
class LinearMargin(DataConfig):
    """x = 1/2 + (margin * (2 y - 1), z), z normal with deviation `sigma`, cut by the box [0, 1].

    y is 0 or 1. The first coordinate alone tells the class: the best classifier is robust within
    any lp ball of a radius below `margin`, with no error at all; all others are noise.

    Source: the synthetic distribution of arXiv:2306.06995; its constants are not published where
    we could read them, so all are settings here.

    Args:
        dimension: d, pixels.
        margin: distance of both classes from the plane, in [0, 1] pixel units.
        sigma: deviation of the other coordinates, likewise.
        train_examples, test_examples: how many are drawn.
        seed: of the draw.
    """

    type: Literal["linear_margin"] = "linear_margin"
    dimension: Annotated[int, Field(ge=2)] = 100
    margin: Length = 0.1
    sigma: Length = 0.1
    train_examples: PositiveInt = 5000
    test_examples: PositiveInt = 2000
    seed: NonNegativeInt = 0

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
        source = np.random.Generator(np.random.PCG64(seed_of("linear_margin", self.seed, part)))
        y = source.integers(0, 2, n)
        x = 0.5 + self.sigma * source.standard_normal((n, self.dimension))
        x[:, 0] = 0.5 + self.margin * (2 * y - 1)
        x = x.clip(0, 1)
        return x.reshape(n, 1, 1, -1).astype(np.float32), y.astype(np.int64)
