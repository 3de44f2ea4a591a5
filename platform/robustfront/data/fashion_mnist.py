"""Fashion-MNIST."""

from __future__ import annotations

from typing import ClassVar, Literal

from robustfront.data.base import DATA
from robustfront.data.torchvision_sets import TorchvisionConfig


@DATA.register
class FashionMNIST(TorchvisionConfig):
    """Pictures of clothes: 60,000 + 10,000 grey images of 28x28, 10 classes.

    Source: arXiv:1708.07747; downloaded by torchvision.
    """

    type: Literal["fashion_mnist"] = "fashion_mnist"
    torchvision_name: ClassVar[str] = "FashionMNIST"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(1, 28, 28)."""
        return 1, 28, 28

    @property
    def classes(self) -> int:
        """Kinds of clothes."""
        return 10

    @property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Of the 60,000 training images."""
        return (0.2860,), (0.3530,)
