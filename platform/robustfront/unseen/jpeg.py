"""JPEG: what compression keeps of the image is changed."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from robustfront.errors import ConfigError
from robustfront.randomness import Rng
from robustfront.unseen.base import UNSEEN, Unseen, ascended

# Quantisation tables of ITU-T T.81, annex K: brightness, then colour.
_BRIGHTNESS = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_COLOUR = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *[(99,) * 8] * 4,
)
# From red, green and blue to brightness and two differences of colour (ITU-T T.871), and back.
_TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))


@UNSEEN.register
class JPEG(Unseen):
    """The image as JPEG stores it, its coefficients changed by up to `strength` by signed ascent.

    Coefficients of the cosine transform of blocks of 8 x 8 pixels, divided by the quantisation
    table of `quality` and rounded, plus a rounded change in [-strength, strength]; gradients pass
    through the rounding as if it were not there. Images of one or three channels.

    Source: arXiv:1908.08016, section 3 (UAR, l-infinity). Official code: ddkang/advex-uar.
    Deviates: colours are stored at full resolution.
    """

    type: Literal["jpeg"] = "jpeg"
    strength: PositiveFloat = 2.0
    quality: Annotated[int, Field(ge=1, le=100)] = 80
    steps: PositiveInt = 30
    restarts: PositiveInt = 1

    @property
    def name(self) -> str:
        """`jpeg_2/pgd30`."""
        runs = f"x{self.restarts}" if self.restarts > 1 else ""
        return f"jpeg_{self.strength:g}/pgd{self.steps}{runs}"

    def candidates(self) -> int:
        """One for each start."""
        return self.restarts

    def candidate(self, number: int, model: nn.Module, x: Tensor, y: Tensor, rng: Rng) -> Tensor:
        """The image that the last change of one run is unpacked to.

        Raises:
            ConfigError: two channels, or more than three.
        """
        if x.shape[1] not in (1, 3):
            raise ConfigError("evaluate.unseen", [f"jpeg: {x.shape[1]} channels, knows 1 and 3"])
        stored = self.stored(x)

        def render(change: Tensor) -> Tensor:
            return self.unpacked(stored + _rounded(change), x)

        start = (2 * rng.uniform(stored) - 1) * self.strength
        step = 2.5 * self.strength / self.steps
        ends = (-self.strength, self.strength)
        return render(ascended(model, start, render, y, step, self.steps, ends=ends))

    def stored(self, x: Tensor) -> Tensor:
        """Rounded coefficients (N, C, rows, columns, 8, 8) of images in [0, 1]."""
        values = 255 * x - 128 if x.shape[1] == 1 else _mixed(255 * x, _TO_YCC) - _offset(x)
        down, right = (-size % 8 for size in x.shape[2:])
        padded = F.pad(values, (0, right, 0, down), mode="replicate")
        blocks = padded.unfold(2, 8, 8).unfold(3, 8, 8)
        waves = _waves(x)
        return (waves @ blocks @ waves.T / self._table(x)).round()

    def unpacked(self, coefficients: Tensor, x: Tensor) -> Tensor:
        """The image in [0, 1] of coefficients, with the shape of x."""
        waves = _waves(x)
        blocks = waves.T @ (coefficients * self._table(x)) @ waves
        n, channels, down, right = blocks.shape[:4]
        whole = blocks.transpose(3, 4).reshape(n, channels, 8 * down, 8 * right)
        values = whole[:, :, : x.shape[2], : x.shape[3]]
        if channels == 1:
            return ((values + 128) / 255).clamp(0, 1)
        back = torch.linalg.inv(x.new_tensor(_TO_YCC).double()).tolist()
        return (_mixed(values + _offset(x), back) / 255).clamp(0, 1)

    def _table(self, x: Tensor) -> Tensor:
        """The divisors of each channel at this quality, as libjpeg scales them."""
        tables = x.new_tensor([_BRIGHTNESS, *[_COLOUR] * (x.shape[1] - 1)])
        scale = 5000 / self.quality if self.quality < 50 else 200 - 2 * self.quality
        return ((tables * scale + 50) / 100).floor().clamp(1, 255)[None, :, None, None]


def _waves(like: Tensor) -> Tensor:
    """The orthonormal cosine transform of 8 values."""
    at = torch.arange(8, device=like.device, dtype=like.dtype)
    waves = torch.cos(math.pi * (2 * at[None] + 1) * at[:, None] / 16) / 2
    return torch.cat([waves[:1] / math.sqrt(2), waves[1:]])


def _offset(like: Tensor) -> Tensor:
    """What centres brightness; differences of colour are centred already."""
    return like.new_tensor([128.0, 0.0, 0.0]).reshape(1, 3, 1, 1)


def _mixed(x: Tensor, matrix: tuple[tuple[float, ...], ...] | list[list[float]]) -> Tensor:
    return torch.einsum("oc,nchw->nohw", x.new_tensor(matrix), x)


def _rounded(change: Tensor) -> Tensor:
    return change + (change.round() - change).detach()
