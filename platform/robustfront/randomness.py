"""Randomness as a function of a key, never of process history.

A key is (seed, epoch, step, purpose) in training and (seed, purpose) in evaluation, so a resumed
trial draws what an uninterrupted one would have drawn, and evaluation does not depend on batches.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy import special
from torch import Tensor

Key = tuple[int | str, ...]
Noise = Literal["gaussian", "uniform", "splitting"]


def seed_of(*key: int | str) -> int:
    """A 63-bit seed from a key; different keys give independent seeds."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(device: torch.device | str, *key: int | str) -> torch.Generator:
    """A fresh generator on the device, seeded by the key."""
    return torch.Generator(device=device).manual_seed(seed_of(*key))


@dataclass
class Rng:
    """Random tensors for a run of examples, the same however these are cut into batches.

    Draws are made in blocks of `block` consecutive examples, each block from a generator of its
    own; a batch takes the rows it covers. Every call is a new draw.

    Args:
        key: what the randomness depends on.
        first: position of the batch's first example in the whole set.
        block: examples that share a generator; a batch size where batches are fixed anyway.
        positions: those of the batch's examples, where they are not consecutive; `first` is unused.
    """

    key: Key
    first: int = 0
    block: int = 128
    positions: Tensor | None = None
    draws: int = field(default=0, init=False)

    def uniform(self, like: Tensor) -> Tensor:
        """U[0, 1) of the shape, dtype and device of `like` (N, ...)."""
        return self._blocks(like, "uniform")

    def normal(self, like: Tensor) -> Tensor:
        """N(0, 1) of the shape, dtype and device of `like` (N, ...)."""
        return self._blocks(like, "normal")

    def exponential(self, like: Tensor) -> Tensor:
        """Exp(1) of the shape, dtype and device of `like` (N, ...)."""
        return self._blocks(like, "exponential")

    def noise(self, like: Tensor, sigma: float | Tensor, law: Noise) -> Tensor:
        """Of deviation `sigma`: N(0, sigma^2), or U(-L, L) with L = sqrt(3) sigma, or what takes
        the pixels of `like` to the middles of their cells (`cell_middles`)."""
        if law == "splitting":
            return cell_middles(like, self.uniform(like), sigma) - like
        if law == "uniform":
            return math.sqrt(3) * sigma * (2 * self.uniform(like) - 1)
        return sigma * self.normal(like)

    def child(self, *more: int | str) -> Rng:
        """An independent source for the same examples."""
        return Rng((*self.key, *more), self.first, self.block, self.positions)

    def rows(self, index: Tensor) -> Rng:
        """The same source for some of the examples: draws what it would have drawn for them."""
        index = index.cpu()
        positions = self.first + index if self.positions is None else self.positions[index]
        chosen = Rng(self.key, self.first, self.block, positions)
        chosen.draws = self.draws
        return chosen

    def _blocks(self, like: Tensor, law: str) -> Tensor:
        self.draws += 1
        if self.positions is not None:
            return self._scattered(like, law, self.positions)
        end = self.first + len(like)
        rows = []
        for index in range(self.first // self.block, -(-end // self.block)):
            start = index * self.block
            whole = self._block(like, law, index)
            rows.append(whole[max(self.first - start, 0) : end - start])
        if not rows:
            return torch.empty_like(like)
        return rows[0] if len(rows) == 1 else torch.cat(rows)

    def _scattered(self, like: Tensor, law: str, positions: Tensor) -> Tensor:
        found = torch.empty_like(like)
        blocks = positions // self.block
        for index in torch.unique(blocks).tolist():
            here = (blocks == index).nonzero()[:, 0]
            whole = self._block(like, law, index)
            rows = (positions[here] - index * self.block).to(like.device)
            found[here.to(like.device)] = whole[rows]
        return found

    def _block(self, like: Tensor, law: str, index: int) -> Tensor:
        source = generator(like.device, *self.key, law, self.draws, index)
        whole = torch.empty((self.block, *like.shape[1:]), dtype=like.dtype, device=like.device)
        _FILL[law](whole, source)
        return whole


def cell_middles(x: Tensor, place: Tensor, sigma: float | Tensor) -> Tensor:
    """The middle of the cell that each pixel lies in: [0, 1] is cut every 2 sqrt(3) sigma.

    Args:
        x: in [0, 1].
        place: of the first cut, as a share of that, U[0, 1), of x's shape.
    Source: arXiv:2103.10834, the splitting noise SSN.
    """
    width = 2 * math.sqrt(3) * sigma
    start = place * width
    low = start + width * ((x - start) / width).floor()
    return (low.clamp(min=0) + (low + width).clamp(max=1)) / 2


def whole_normal(shape: Sequence[int], deviation: float, source: torch.Generator) -> Tensor:
    """N(0, deviation^2) rounded to whole numbers, int64, by integer arithmetic.

    One uniform integer of 60 bits a number is looked up among the thresholds of all that may come.
    """
    device = source.device
    drawn = torch.empty(tuple(shape), dtype=torch.int64, device=device)
    drawn.random_(0, _BITS, generator=source)
    thresholds = torch.from_numpy(_thresholds(deviation)).to(device)
    return torch.searchsorted(thresholds, drawn, right=True) - len(thresholds) // 2


@lru_cache(maxsize=256)
def whole_normal_error(deviation: float) -> float:
    """How far a probability under `whole_normal` may be from that under the law itself, at most.

    Rounding of the thresholds, and the tails beyond the last.
    """
    lower = _lower_tail(deviation)
    return float(2 * _TAIL_ERROR * lower.sum() + (2 * len(lower) + 2) / _BITS)


_BITS = 2**60
_TAIL_ERROR = 1e-13  # of a probability of the lower tail in double precision, relative


def _lower_tail(deviation: float) -> npt.NDArray[np.float64]:
    """P(noise < -(j + 1/2)) for j = 0, 1, ..., as far as 60 bits can tell it from 0."""
    count = math.ceil(9 * deviation) + 1
    tail: npt.NDArray[np.float64] = special.ndtr(-(np.arange(count) + 0.5) / deviation)
    return tail[: max(int((tail * _BITS >= 1).sum()), 1)]


@lru_cache(maxsize=256)
def _thresholds(deviation: float) -> npt.NDArray[np.int64]:
    """Where the next larger whole number begins among 2^60 equally likely ones, ascending."""
    lower = np.floor(_lower_tail(deviation) * _BITS).astype(np.int64)
    return np.concatenate([lower[::-1], _BITS - lower])


_FILL = {
    "uniform": lambda tensor, source: tensor.uniform_(generator=source),
    "normal": lambda tensor, source: tensor.normal_(generator=source),
    "exponential": lambda tensor, source: tensor.exponential_(generator=source),
}
