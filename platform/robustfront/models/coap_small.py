"""The small convolutional network of the certified-training literature for MNIST."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import nn

from robustfront.models.base import MODELS, ModelConfig


@MODELS.register
class COAPSmall(ModelConfig):
    """Two 4x4 convolutions with stride 2 (16, 32) and a layer of 100, without batch norm.

    PyTorch's default initialisation.

    Size: 166,406 parameters for MNIST.
    Source: mnist_model of locuslab/convex_adversarial (arXiv:1711.00851).
    """

    smallest: ClassVar[int] = 4

    type: Literal["coap_small"] = "coap_small"

    def build(self, shape: tuple[int, int, int], classes: int) -> tuple[nn.Module, nn.Module]:
        """The stem is the first convolution."""
        channels, height, width = shape
        stem = nn.Conv2d(channels, 16, 4, stride=2, padding=1)
        body = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(16, 32, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * (height // 4) * (width // 4), 100),
            nn.ReLU(),
            nn.Linear(100, classes),
        )
        return stem, body
