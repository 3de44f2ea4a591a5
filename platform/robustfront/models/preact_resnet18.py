"""The pre-activation ResNet-18 for 32x32 images, and its residual block."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from robustfront.models.base import MODELS, ModelConfig


class PreActBlock(nn.Module):
    """y = shortcut + rest(a) with a = ReLU(BN(x)) and rest two 3x3 convolutions.

    The shortcut is x itself, or a 1x1 convolution of a where the shape changes.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.activation = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU())
        self.rest = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        )
        self.shortcut = (
            nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
            if stride != 1 or inputs != outputs
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        active = self.activation(x)
        rest: Tensor = self.rest(active)
        return rest + (x if self.shortcut is None else self.shortcut(active))


def preact_stages(widths: tuple[int, ...], blocks: int, classes: int) -> nn.Sequential:
    """Stages of residual blocks between consecutive widths, then BN, ReLU, pooling, logits.

    Every stage but the first halves the resolution; pooling is the mean over all pixels.
    """
    layers: list[nn.Module] = []
    for stage, (inputs, outputs) in enumerate(pairwise(widths)):
        layers.append(PreActBlock(inputs, outputs, stride=1 if stage == 0 else 2))
        layers += [PreActBlock(outputs, outputs, stride=1) for _ in range(blocks - 1)]
    layers += [nn.BatchNorm2d(widths[-1]), nn.ReLU()]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes)]
    return nn.Sequential(*layers)


@MODELS.register
class PreActResNet18(ModelConfig):
    """ResNet-18 with pre-activation blocks of 64, 128, 256, 512 channels, for small images.

    Batch norm and ReLU come once more before the pooling; PyTorch's default initialisation.

    Size: 11,172,170 parameters for CIFAR-10, the figure of the literature; without the final batch
    norm it would be 11,171,146. 11,171,018 for MNIST.
    Source: arXiv:1603.05027; with the final batch norm in locuslab/fast_adversarial
    (arXiv:2001.03994) and locuslab/robust_overfitting (arXiv:2002.11569).
    """

    type: Literal["preact_resnet18"] = "preact_resnet18"

    def build(self, shape: tuple[int, int, int], classes: int) -> tuple[nn.Module, nn.Module]:
        """The stem is the first convolution."""
        stem = nn.Conv2d(shape[0], 64, 3, padding=1, bias=False)
        return stem, preact_stages((64, 64, 128, 256, 512), 2, classes)
