"""The network of the certified-training literature."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from pydantic import PositiveInt
from torch import nn

from robustfront.models.base import MODELS, ModelConfig

_HIDDEN = 512


@MODELS.register
class CNN7(ModelConfig):
    """Five 3x3 convolutions (w, w, 2w with stride 2, 2w, 2w) and 512 features, all with batch norm.

    PyTorch's default initialisation; certified methods set their own where they need one.

    Size: 17,192,650 parameters for CIFAR-10, 13,259,338 for MNIST at width 64.
    Source: cnn_7layer_bn of shizhouxing/Fast-Certified-Robust-Training (arXiv:2103.17268).

    Args:
        width: w, channels of the first convolution.
    """

    type: Literal["cnn7"] = "cnn7"
    width: PositiveInt = 64

    def build(self, shape: tuple[int, int, int], classes: int) -> tuple[nn.Module, nn.Module]:
        """The stem is the first convolution."""
        channels, height, width = shape
        widths = (self.width, self.width, 2 * self.width, 2 * self.width, 2 * self.width)
        stem = nn.Conv2d(channels, widths[0], 3, padding=1)
        layers: list[nn.Module] = [nn.BatchNorm2d(widths[0]), nn.ReLU()]
        for inputs, outputs in pairwise(widths):
            stride = 2 if outputs > inputs else 1
            layers += [
                nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
            ]
        pixels = ((height + 1) // 2) * ((width + 1) // 2)
        layers += [
            nn.Flatten(),
            nn.Linear(widths[-1] * pixels, _HIDDEN),
            nn.BatchNorm1d(_HIDDEN),
            nn.ReLU(),
            nn.Linear(_HIDDEN, classes),
        ]
        return stem, nn.Sequential(*layers)
