"""The small digits that come with scikit-learn."""

from __future__ import annotations

from typing import Literal

import numpy as np

from robustfront.data.base import DATA, DataConfig, RawData
from robustfront.randomness import seed_of

_TEST = 297


@DATA.register
class Digits(DataConfig):
    """Handwritten digits: 1,500 + 297 grey images of 8x8 with values 0 to 16, 10 classes.

    Nothing is downloaded. The test images are a permutation's first 297, always the same ones.

    Source: Alpaydin & Kaynak 1998, through sklearn.datasets.load_digits.
    """

    type: Literal["digits"] = "digits"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(1, 8, 8)."""
        return 1, 8, 8

    @property
    def classes(self) -> int:
        """Digits 0 to 9."""
        return 10

    def load(self) -> RawData:
        """From the installed package."""
        from sklearn.datasets import load_digits  # slow to import, and only this set needs it

        digits = load_digits()
        x = digits.images.astype(np.uint8)[:, None]
        y = digits.target.astype(np.int64)
        order = np.random.Generator(np.random.PCG64(seed_of("digits", "test"))).permutation(len(y))
        test, train = order[:_TEST], order[_TEST:]
        return RawData(x[train], y[train], x[test], y[test], scale=16)
