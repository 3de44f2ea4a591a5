"""Fog: clouds of all sizes over the image."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from robustfront.randomness import Rng
from robustfront.unseen.base import UNSEEN, Unseen, ascended


@UNSEEN.register
class Fog(Unseen):
    """Clouds in [0, 1], their shape found by signed ascent, mixed into the image.

    (x + strength * fog) * m / (m + strength), m the brightest value of the image. The fog is a mean
    of grids of 2, 3, 5, 9, ... points a side up to the image's, enlarged to it, each with weight
    `decay` times that of the one before.

    Source: arXiv:1908.08016, section 3 (UAR); the mixing is that of arXiv:1903.12261.
    Deviates: enlarged grids where the official code refines a grid by the diamond-square rule.
    """

    type: Literal["fog"] = "fog"
    strength: PositiveFloat = 0.6
    decay: Annotated[float, Field(gt=0, le=1)] = 0.6
    steps: PositiveInt = 30
    restarts: PositiveInt = 1

    @property
    def name(self) -> str:
        """`fog_0.6/pgd30`."""
        runs = f"x{self.restarts}" if self.restarts > 1 else ""
        return f"fog_{self.strength:g}/pgd{self.steps}{runs}"

    def candidates(self) -> int:
        """One for each start."""
        return self.restarts

    def candidate(self, number: int, model: nn.Module, x: Tensor, y: Tensor, rng: Rng) -> Tensor:
        """The image in the last fog of one run."""
        brightest = x.flatten(1).amax(1).reshape(-1, 1, 1, 1)
        sides = _sides(max(x.shape[2:]))

        def render(heights: Tensor) -> Tensor:
            fog = self._fog(heights, sides, x)
            return (x + self.strength * fog) * (brightest / (brightest + self.strength))

        start = rng.uniform(x.new_empty(len(x), sum(side**2 for side in sides)))
        step = 1.25 / self.steps
        return render(ascended(model, start, render, y, step, self.steps, ends=(0, 1)))

    def _fog(self, heights: Tensor, sides: list[int], x: Tensor) -> Tensor:
        """Means of all grids, in [0, 1], (N, 1, H, W)."""
        fog, total = x.new_zeros(len(x), 1, *x.shape[2:]), 0.0
        grids = torch.split(heights, [side**2 for side in sides], dim=1)
        for number, (side, grid) in enumerate(zip(sides, grids, strict=True)):
            square = grid.reshape(-1, 1, side, side)
            large = F.interpolate(square, x.shape[2:], mode="bilinear", align_corners=True)
            fog = torch.add(fog, large, alpha=self.decay**number)
            total += self.decay**number
        return fog / total


def _sides(largest: int) -> list[int]:
    """2, 3, 5, 9, ... and not beyond."""
    sides = [2]
    while 2 * sides[-1] - 1 <= largest:
        sides.append(2 * sides[-1] - 1)
    return sides
