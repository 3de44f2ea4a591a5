"""Patches: a square of the image that may hold anything."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from robustfront.randomness import Rng
from robustfront.unseen.base import UNSEEN, Unseen, ascended


@UNSEEN.register
class Patch(Unseen):
    """A square of `size` pixels at random places, its content found by signed gradient ascent.

    At each of `locations` places the square starts as it is and takes `steps` steps of `step_size`
    within [0, 1].

    Certified by trying every place, each with a box in which the square may hold anything.

    Source: the patch attack of arXiv:2410.03000 (CURE), 40 steps of 0.05; places at random as in
    arXiv:1712.09665; certificate arXiv:2003.06693, section 4.1.
    """

    certifiable: ClassVar[bool] = True

    type: Literal["patch"] = "patch"
    size: PositiveInt = 5
    locations: PositiveInt = 20
    steps: PositiveInt = 40
    step_size: PositiveFloat = 0.05

    @property
    def name(self) -> str:
        """`patch_5/pgd40x20`."""
        return f"patch_{self.size}/pgd{self.steps}x{self.locations}"

    def candidates(self) -> int:
        """One for each place."""
        return self.locations

    def candidate(self, number: int, model: nn.Module, x: Tensor, y: Tensor, rng: Rng) -> Tensor:
        """The image with a square of its own at a place of its own."""
        height, width = x.shape[2:]
        place = rng.uniform(x.new_empty(len(x), 2, dtype=torch.float32))
        top = (place[:, :1] * max(height - self.size + 1, 1)).floor()
        left = (place[:, 1:] * max(width - self.size + 1, 1)).floor()
        row, column = torch.arange(height, device=x.device), torch.arange(width, device=x.device)
        inside_row = (row >= top) & (row < top + self.size)
        inside_column = (column >= left) & (column < left + self.size)
        mask = (inside_row[:, :, None] & inside_column[:, None, :])[:, None]

        def render(change: Tensor) -> Tensor:
            return torch.where(mask, change, x)

        content = ascended(model, x, render, y, self.step_size, self.steps, ends=(0, 1))
        return render(content)

    def boxes(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """One for each place."""
        height, width = x.shape[2:]
        for top in range(max(height - self.size, 0) + 1):
            for left in range(max(width - self.size, 0) + 1):
                low, high = x.clone(), x.clone()
                square = (..., slice(top, top + self.size), slice(left, left + self.size))
                low[square], high[square] = 0, 1
                yield low, high
