"""Affine maps of the image plane, with brightness and contrast: what a camera may do."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from robustfront.randomness import Rng
from robustfront.unseen.base import UNSEEN, Unseen, moved

Ends = tuple[Tensor, Tensor]  # of intervals

_ROUNDING = 1e-4  # pixels by which the places that a pixel may come from are widened
_VALUES = 1e-5  # the same for values
_MOST_BOXES = 100_000
_NAMES = ("rotation", "translation", "translation", "scale", "shear", "brightness", "contrast")


@UNSEEN.register
class Geometric(Unseen):
    """The image turned, shifted, scaled and sheared about its centre, then its contrast and
    brightness changed; each by up to the number given, to both sides.

    x'(p) = (1 + contrast) x((1 + scale) R(rotation) S(shear) p + translation) + brightness, cut to
    [0, 1]; R turns, S adds shear times the column to the row, x between pixels is bilinear, and
    black outside.

    Found by trying `tries` random parameters. Certified by cutting each parameter's range into
    `splits` parts (None: 20, or fewer, for at most 100,000 boxes in all): in each part, intervals
    of the place that a pixel comes from, and the exact range of the bilinear interpolation over
    that place. What `evaluate.unseen` names is certified where the job has a certifier.

    Source: sets as in arXiv:2410.03000 (CURE), section 5; interval bounds as in arXiv:1903.04079
    (DeepG), section 3, whose linear constraints are tighter.

    Args:
        rotation: degrees, up to 90.
        translation: pixels, down and right each on its own.
        scale, shear, brightness, contrast: shares.
    """

    certifiable: ClassVar[bool] = True

    type: Literal["geometric"] = "geometric"
    rotation: Annotated[float, Field(ge=0, le=90)] = 0.0
    translation: NonNegativeFloat = 0.0
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.0
    shear: NonNegativeFloat = 0.0
    brightness: Annotated[float, Field(ge=0, le=1)] = 0.0
    contrast: Annotated[float, Field(ge=0, le=1)] = 0.0
    tries: PositiveInt = 100
    splits: PositiveInt | None = None

    @property
    def name(self) -> str:
        """`rotation_10_scale_0.05/random100`."""
        moving = {name: getattr(self, name) for name in _NAMES if getattr(self, name)}
        parts = [f"{name}_{size:g}" for name, size in moving.items()] or ["geometric_0"]
        return f"{'_'.join(parts)}/random{self.tries}"

    def candidates(self) -> int:
        """So many random parameters."""
        return self.tries

    def candidate(self, number: int, model: nn.Module, x: Tensor, y: Tensor, rng: Rng) -> Tensor:
        """The image under parameters of its own."""
        drawn = 2 * rng.uniform(x.new_empty(len(x), len(_NAMES))) - 1
        return self.changed(x, drawn * x.new_tensor(self._sizes()))

    def changed(self, x: Tensor, parameters: Tensor) -> Tensor:
        """Images (N, C, H, W) under their parameters (N, 7), in the order of the formula's names:
        rotation, translation down and right, scale, shear, brightness, contrast."""
        turn, down, right, scale, shear, light, contrast = (
            column[:, None, None] for column in parameters.T
        )
        rows, columns = _places(x)
        cos, sin = torch.cos(torch.deg2rad(turn)), torch.sin(torch.deg2rad(turn))
        sheared = rows + shear * columns
        from_row = (1 + scale) * (cos * sheared + sin * columns) + down
        from_column = (1 + scale) * (cos * columns - sin * sheared) + right
        seen = moved(x, torch.stack([from_row - rows, from_column - columns], dim=1))
        changed: Tensor = seen * (1 + contrast)[:, None] + light[:, None]
        return changed.clamp(0, 1)

    def boxes(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """One for each part of the range of the parameters."""
        splits = self.splits or self._affordable()
        ranges = [_cut(size, splits) for size in self._sizes()]
        for part in itertools.product(*ranges):
            yield self._box(x, part)

    def _sizes(self) -> list[float]:
        return [getattr(self, name) for name in _NAMES]

    def _affordable(self) -> int:
        """Parts of each range: their number to the power of the parameters is that of boxes."""
        moving = sum(size > 0 for size in self._sizes())
        return max(splits for splits in range(1, 21) if splits**moving <= _MOST_BOXES)

    def _box(self, x: Tensor, part: tuple[tuple[float, float], ...]) -> tuple[Tensor, Tensor]:
        """What each pixel can be within a part of the range."""
        turn, down, right, scale, shear, light, contrast = (
            (x.new_tensor(a), x.new_tensor(b)) for a, b in part
        )
        rows, columns = _places(x)
        cos, sin = _cosine(turn), _sine(turn)
        sheared = _plus((rows, rows), _times(shear, (columns, columns)))
        zoom = scale[0] + 1, scale[1] + 1
        turned = _plus(_times(cos, sheared), _times(sin, (columns, columns)))
        from_row = _plus(_times(zoom, turned), down)
        turned = _minus(_times(cos, (columns, columns)), _times(sin, sheared))
        from_column = _plus(_times(zoom, turned), right)
        low, high = _interpolated(x, _widened(from_row), _widened(from_column))
        # Values are not negative, so neither end changes places.
        low, high = low * (1 + contrast[0]) + light[0], high * (1 + contrast[1]) + light[1]
        return (low - _VALUES).clamp(0, 1), (high + _VALUES).clamp(0, 1)


def _cut(size: float, splits: int) -> list[tuple[float, float]]:
    """The range of a parameter in equal parts."""
    if not size:
        return [(0.0, 0.0)]
    cuts = [size * (2 * at / splits - 1) for at in range(splits + 1)]
    return list(itertools.pairwise(cuts))


def _places(x: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of each pixel from the centre, (H, W) each."""
    height, width = x.shape[2:]
    rows = torch.arange(height, device=x.device, dtype=x.dtype)[:, None] - (height - 1) / 2
    columns = torch.arange(width, device=x.device, dtype=x.dtype) - (width - 1) / 2
    return rows.expand(height, width), columns.expand(height, width)


def _interpolated(x: Tensor, rows: Ends, columns: Ends) -> tuple[Tensor, Tensor]:
    """The least and the largest value of the interpolation over a rectangle for each pixel.

    Within a cell of the grid it is linear in the row and in the column, so its ends are taken at
    the corners of the cells' parts: where the rectangle ends or crosses a line of the grid.
    """
    own_row, own_column = _places(x)
    low = high = None
    for row in _knots(rows, x.shape[2]):
        for column in _knots(columns, x.shape[3]):
            flow = torch.stack([row - own_row, column - own_column])
            value = moved(x, flow.expand(len(x), -1, -1, -1))
            low = value if low is None else torch.minimum(low, value)
            high = value if high is None else torch.maximum(high, value)
    assert low is not None
    assert high is not None
    return low, high


def _knots(ends: Ends, size: int) -> list[Tensor]:
    """Both ends, and the lines of the grid between them."""
    low, high = ends
    middle = (size - 1) / 2  # lines are where row + middle is whole
    first = torch.ceil(low + middle) - middle
    most = int(torch.floor(high + middle).sub(torch.ceil(low + middle)).amax()) + 1
    between = [torch.clamp(first + at, max=high) for at in range(most)]
    return [low, *(torch.maximum(line, low) for line in between), high]


def _widened(ends: Ends) -> Ends:
    return ends[0] - _ROUNDING, ends[1] + _ROUNDING


def _plus(a: Ends, b: Ends) -> Ends:
    return a[0] + b[0], a[1] + b[1]


def _minus(a: Ends, b: Ends) -> Ends:
    return a[0] - b[1], a[1] - b[0]


def _times(a: Ends, b: Ends) -> Ends:
    products = [p * q for p in a for q in b]
    low = functools.reduce(torch.minimum, products)
    return low, functools.reduce(torch.maximum, products)


def _cosine(degrees: Ends) -> Ends:
    """Of an interval within -90 to 90."""
    low, high = (math.cos(math.radians(float(end))) for end in degrees)
    top = 1.0 if float(degrees[0]) <= 0 <= float(degrees[1]) else max(low, high)
    return degrees[0].new_tensor(min(low, high)), degrees[0].new_tensor(top)


def _sine(degrees: Ends) -> Ends:
    """Of an interval within -90 to 90, where it grows."""
    low, high = (math.sin(math.radians(float(end))) for end in degrees)
    return degrees[0].new_tensor(low), degrees[0].new_tensor(high)
