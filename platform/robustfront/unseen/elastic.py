"""Elastic deformations."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from robustfront.randomness import Rng
from robustfront.unseen.base import UNSEEN, Unseen, ascended, moved


@UNSEEN.register
class Elastic(Unseen):
    """Every pixel is taken from up to `pixels` away, along a smooth field found by gradient ascent.

    The field is a Gaussian blur (`smoothness` pixels) of one with entries in [-pixels, pixels];
    `restarts` random starts, `steps` signed steps of 2.5 / steps of the range.

    Source: arXiv:1908.08016, section 3 (UAR). Official code: ddkang/advex-uar.
    Deviates: the size is in pixels.
    """

    type: Literal["elastic"] = "elastic"
    pixels: PositiveFloat = 1.5
    smoothness: PositiveFloat = 3.0
    steps: PositiveInt = 30
    restarts: PositiveInt = 1

    @property
    def name(self) -> str:
        """`elastic_1.5/pgd30`."""
        runs = f"x{self.restarts}" if self.restarts > 1 else ""
        return f"elastic_{self.pixels:g}/pgd{self.steps}{runs}"

    def candidates(self) -> int:
        """One for each start."""
        return self.restarts

    def candidate(self, number: int, model: nn.Module, x: Tensor, y: Tensor, rng: Rng) -> Tensor:
        """The image under the last field of one run."""
        start = rng.uniform(x.new_empty(len(x), 2, *x.shape[2:]))
        field = (2 * start - 1) * self.pixels

        def render(change: Tensor) -> Tensor:
            return moved(x, self._blurred(change))

        step = 2.5 * self.pixels / self.steps
        ends = (-self.pixels, self.pixels)
        return render(ascended(model, field, render, y, step, self.steps, ends=ends))

    def _blurred(self, field: Tensor) -> Tensor:
        """Means of the entries around, so never beyond their range."""
        reach = int(3 * self.smoothness)
        along = torch.arange(-reach, reach + 1, device=field.device, dtype=field.dtype)
        weights = torch.exp(-0.5 * (along / self.smoothness) ** 2)
        kernel = (weights / weights.sum()).expand(2, 1, 1, -1)
        across = F.conv2d(field, kernel, padding=(0, reach), groups=2)
        return F.conv2d(across, kernel.transpose(2, 3), padding=(reach, 0), groups=2)
