"""CIFAR-10."""

from __future__ import annotations

from typing import ClassVar, Literal

from robustfront.data.base import DATA, Augment
from robustfront.data.torchvision_sets import TorchvisionConfig


@DATA.register
class CIFAR10(TorchvisionConfig):
    """Small photographs: 50,000 + 10,000 colour images of 32x32, 10 classes.

    Source: Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images"; downloaded by
    torchvision.
    """

    type: Literal["cifar10"] = "cifar10"
    augment: Augment | None = Augment(crop=4, flip=True)
    torchvision_name: ClassVar[str] = "CIFAR10"

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
