"""Gabor noise: stripes around many points."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from robustfront.randomness import Rng
from robustfront.unseen.base import UNSEEN, Unseen, ascended, filtered


@UNSEEN.register
class Gabor(Unseen):
    """Stripes of one direction around random points, their weights found by signed ascent.

    x + strength * noise / max |noise|, with noise the sum of `density` * H * W Gabor kernels
    (a cosine of `wavelength` pixels under a Gaussian of `width` pixels) with weights in [-1, 1];
    points and direction are drawn for each image and start.

    Source: arXiv:1908.08016, section 3 (UAR). Official code: ddkang/advex-uar.
    Deviates: one direction for each image, where the code draws one by channel of the noise.
    """

    type: Literal["gabor"] = "gabor"
    strength: Annotated[float, Field(gt=0, le=1)] = 0.2
    density: Annotated[float, Field(gt=0, le=1)] = 0.1
    wavelength: PositiveFloat = 4.0
    width: PositiveFloat = 2.0
    steps: PositiveInt = 30
    restarts: PositiveInt = 1

    @property
    def name(self) -> str:
        """`gabor_0.2/pgd30`."""
        runs = f"x{self.restarts}" if self.restarts > 1 else ""
        return f"gabor_{self.strength:g}/pgd{self.steps}{runs}"

    def candidates(self) -> int:
        """One for each start."""
        return self.restarts

    def candidate(self, number: int, model: nn.Module, x: Tensor, y: Tensor, rng: Rng) -> Tensor:
        """The image under the last noise of one run."""
        like = x[:, :1]
        points = (rng.uniform(like) < self.density).to(x.dtype)
        kernels = self._kernels(rng.uniform(like[:, :, :1, :1]) * math.pi)

        def render(weights: Tensor) -> Tensor:
            noise = filtered(weights * points, kernels)
            largest = noise.flatten(1).abs().amax(1).clamp(min=1e-12).reshape(-1, 1, 1, 1)
            return (x + self.strength * noise / largest).clamp(0, 1)

        start = 2 * rng.uniform(like) - 1
        step = 2.5 / self.steps
        return render(ascended(model, start, render, y, step, self.steps, ends=(-1, 1)))

    def _kernels(self, direction: Tensor) -> Tensor:
        """One kernel for each direction (N, 1, 1, 1) in radians."""
        reach = math.ceil(3 * self.width)
        along = torch.arange(-reach, reach + 1, device=direction.device, dtype=direction.dtype)
        rows, columns = along[:, None], along[None, :]
        across = columns * torch.cos(direction) + rows * torch.sin(direction)
        bell = torch.exp(-(rows**2 + columns**2) / (2 * self.width**2))
        return bell * torch.cos(2 * math.pi * across / self.wavelength)
