"""Snow: flakes in motion over the image."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from robustfront.randomness import Rng
from robustfront.unseen.base import UNSEEN, Unseen, ascended, filtered


@UNSEEN.register
class Snow(Unseen):
    """White streaks of one direction at random places, their brightness found by signed ascent.

    x + strength * snow, clipped. The snow is `density` * H * W flakes of brightness in [0, 1], each
    smeared over `length` pixels; places and direction are drawn for each image and start.

    Source: arXiv:1908.08016, section 3 (UAR). Official code: ddkang/advex-uar.
    Deviates: the image itself is not whitened; streaks are one pixel wide.
    """

    type: Literal["snow"] = "snow"
    strength: Annotated[float, Field(gt=0, le=1)] = 0.5
    density: Annotated[float, Field(gt=0, le=1)] = 0.05
    length: PositiveFloat = 5.0
    steps: PositiveInt = 30
    restarts: PositiveInt = 1

    @property
    def name(self) -> str:
        """`snow_0.5/pgd30`."""
        runs = f"x{self.restarts}" if self.restarts > 1 else ""
        return f"snow_{self.strength:g}/pgd{self.steps}{runs}"

    def candidates(self) -> int:
        """One for each start."""
        return self.restarts

    def candidate(self, number: int, model: nn.Module, x: Tensor, y: Tensor, rng: Rng) -> Tensor:
        """The image in the last snow of one run."""
        like = x[:, :1]
        places = (rng.uniform(like) < self.density).to(x.dtype)
        kernels = self._kernels(rng.uniform(like[:, :, :1, :1]) * math.pi)

        def render(flakes: Tensor) -> Tensor:
            snow = filtered(flakes * places, kernels).clamp(max=1)
            return (x + self.strength * snow).clamp(max=1)

        start = rng.uniform(like)
        step = 1.25 / self.steps
        return render(ascended(model, start, render, y, step, self.steps, ends=(0, 1)))

    def _kernels(self, direction: Tensor) -> Tensor:
        """A line through the middle for each direction (N, 1, 1, 1) in radians."""
        reach = math.ceil(self.length / 2)
        at = torch.arange(-reach, reach + 1, device=direction.device, dtype=direction.dtype)
        rows, columns = at[:, None], at[None, :]
        along = columns * torch.cos(direction) + rows * torch.sin(direction)
        across = rows * torch.cos(direction) - columns * torch.sin(direction)
        return torch.exp(-2 * across**2) * (along.abs() <= self.length / 2)
