"""Wide residual networks."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt, field_validator
from torch import nn

from robustfront.models.base import MODELS, ModelConfig
from robustfront.models.preact_resnet18 import preact_stages


@MODELS.register
class WideResNet(ModelConfig):
    """WRN-depth-width: three stages of pre-activation blocks of 16, 32, 64 times `width` channels.

    No dropout. Convolutions are initialised by He's rule on the fan-out, biases at zero.

    Size: 36,479,194 parameters for WRN-28-10, 46,160,474 for WRN-34-10, on CIFAR-10.
    Source: arXiv:1605.07146; as used by yaodongyu/TRADES (arXiv:1901.08573).
    Deviates: without the unused `sub_block1` that TRADES' code registers.

    Args:
        depth: 6 n + 4, with n blocks a stage.
        width: factor on the channels.
    """

    type: Literal["wide_resnet"] = "wide_resnet"
    depth: int = 28
    width: PositiveInt = 10

    @field_validator("depth")
    @classmethod
    def _whole_blocks(cls, depth: int) -> int:
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"a depth is 6 n + 4 (10, 16, 22, 28, 34, ...), got {depth}")
        return depth

    def build(self, shape: tuple[int, int, int], classes: int) -> tuple[nn.Module, nn.Module]:
        """The stem is the first convolution."""
        widths = (16, 16 * self.width, 32 * self.width, 64 * self.width)
        stem = nn.Conv2d(shape[0], 16, 3, padding=1, bias=False)
        body = preact_stages(widths, (self.depth - 4) // 6, classes)
        for layer in (stem, *body.modules()):
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out")
            elif isinstance(layer, nn.Linear):
                nn.init.zeros_(layer.bias)
        return stem, body
