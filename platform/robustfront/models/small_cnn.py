"""The convolutional network of the MNIST experiments with TRADES."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import nn

from robustfront.models.base import MODELS, ModelConfig


@MODELS.register
class SmallCNN(ModelConfig):
    """Four 3x3 convolutions without padding (32, 32, 64, 64), two max-pools, two layers of 200.

    Dropout 0.5 after the first fully connected layer; He initialisation of the convolutions; the
    last layer starts at zero, so that the first predictions are uniform.

    Size: 312,202 parameters for MNIST.
    Source: SmallCNN of yaodongyu/TRADES (arXiv:1901.08573).
    """

    smallest: ClassVar[int] = 16

    type: Literal["small_cnn"] = "small_cnn"

    def build(self, shape: tuple[int, int, int], classes: int) -> tuple[nn.Module, nn.Module]:
        """The stem is the first convolution."""
        channels, height, width = shape
        stem = nn.Conv2d(channels, 32, 3)
        features = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(32, 32, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        head = nn.Sequential(
            nn.Linear(64 * _side(height) * _side(width), 200),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(200, 200),
            nn.ReLU(),
        )
        last = nn.Linear(200, classes)
        for layer in (stem, *features):
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        return stem, nn.Sequential(*features, *head, last)


def _side(pixels: int) -> int:
    """Of the last feature map, for an image with a side of so many pixels."""
    return ((pixels - 4) // 2 - 4) // 2
