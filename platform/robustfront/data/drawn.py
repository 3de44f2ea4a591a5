"""What data sets that are drawn share: one row of pixels, two classes, a seed."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field, NonNegativeInt, PositiveInt

from robustfront.data.base import DataConfig, Images, Labels, RawData
from robustfront.randomness import seed_of

Length = Annotated[float, Field(gt=0, le=0.5)]


class Drawn(DataConfig):
    """Two classes, as likely as each other, in [0, 1]^dimension.

    Args:
        dimension: d, pixels.
        train_examples, test_examples: how many are drawn.
        seed: of the draw.
    """

    dimension: Annotated[int, Field(ge=2)] = 100
    train_examples: PositiveInt = 5000
    test_examples: PositiveInt = 2000
    seed: NonNegativeInt = 0

    @abstractmethod
    def points(self, y: Labels, source: np.random.Generator) -> npt.NDArray[np.float64]:
        """One point (N, d) for each label (N,)."""

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
        source = np.random.Generator(np.random.PCG64(seed_of(self.type, self.seed, part)))
        y = source.integers(0, 2, n)
        return self.points(y, source).reshape(n, 1, 1, -1).astype(np.float32), y.astype(np.int64)
