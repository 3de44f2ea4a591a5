"""Rotations and translations."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from robustfront.randomness import Rng
from robustfront.unseen.base import UNSEEN, Unseen, moved


@UNSEEN.register
class RotationTranslation(Unseen):
    """The image turned about its centre and shifted, by every combination of a grid.

    `angles` from -degrees to degrees, `shifts` in each direction from -pixels to pixels; bilinear,
    black outside. A grid because gradients are of little use for it.

    Source: arXiv:1712.02779, section 3; its grid is 31 x 5 x 5.
    """

    type: Literal["rotation_translation"] = "rotation_translation"
    degrees: NonNegativeFloat = 30.0
    pixels: NonNegativeFloat = 3.0
    angles: PositiveInt = 31
    shifts: PositiveInt = 5

    @property
    def name(self) -> str:
        """`rotation_30_translation_3/grid775`."""
        return f"rotation_{self.degrees:g}_translation_{self.pixels:g}/grid{self.candidates()}"

    def candidates(self) -> int:
        """All combinations."""
        return self.angles * self.shifts**2

    def candidate(self, number: int, model: nn.Module, x: Tensor, y: Tensor, rng: Rng) -> Tensor:
        """The image under one combination; draws nothing."""
        turn, shift = divmod(number, self.shifts**2)
        angle = math.radians(_spread(turn, self.angles, self.degrees))
        down, right = (_spread(at, self.shifts, self.pixels) for at in divmod(shift, self.shifts))
        height, width = x.shape[2:]
        rows = torch.arange(height, device=x.device, dtype=x.dtype)[:, None] - (height - 1) / 2
        columns = torch.arange(width, device=x.device, dtype=x.dtype) - (width - 1) / 2
        # Where a pixel of the changed image came from: shifted back, then turned back.
        rows, columns = (rows - down).expand(height, width), (columns - right).expand(height, width)
        from_row = math.cos(angle) * rows + math.sin(angle) * columns
        from_column = math.cos(angle) * columns - math.sin(angle) * rows
        flow = torch.stack([from_row - (rows + down), from_column - (columns + right)])
        return moved(x, flow.expand(len(x), -1, -1, -1))


def _spread(at: int, count: int, end: float) -> float:
    """One of so many values from -end to end; the middle where there is only one."""
    return 0.0 if count == 1 else end * (2 * at / (count - 1) - 1)
