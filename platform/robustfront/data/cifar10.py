"""CIFAR-10."""

from __future__ import annotations

from typing import Literal

from robustfront.data.base import DATA, Augment, DataConfig, RawData
from robustfront.data.torchvision_sets import load_torchvision


@DATA.register
class CIFAR10(DataConfig):
    """Small photographs: 50,000 + 10,000 colour images of 32x32, 10 classes.

    Source: Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images"; downloaded by
    torchvision.

    Args:
        root: a folder with `cifar-10-batches-py`, or several that are searched in order.
    """

    type: Literal["cifar10"] = "cifar10"
    augment: Augment | None = Augment(crop=4, flip=True)
    root: str | tuple[str, ...] = "data"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(3, 32, 32)."""
        return 3, 32, 32

    @property
    def classes(self) -> int:
        """Kinds of animals and vehicles."""
        return 10

    @property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Of the 50,000 training images."""
        return (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

    def load(self) -> RawData:
        """Read, or download."""
        return load_torchvision("CIFAR10", self.root)
