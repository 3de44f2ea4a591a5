"""MNIST."""

from __future__ import annotations

from typing import ClassVar, Literal

from robustfront.data.base import DATA
from robustfront.data.torchvision_sets import TorchvisionConfig


@DATA.register
class MNIST(TorchvisionConfig):
    """Handwritten digits: 60,000 + 10,000 grey images of 28x28, 10 classes.

    Source: LeCun, Bottou, Bengio, Haffner 1998; downloaded by torchvision.
    """

    type: Literal["mnist"] = "mnist"
    torchvision_name: ClassVar[str] = "MNIST"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(1, 28, 28)."""
        return 1, 28, 28

    @property
    def classes(self) -> int:
        """Digits 0 to 9."""
        return 10

    @property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Of the 60,000 training images."""
        return (0.1307,), (0.3081,)
