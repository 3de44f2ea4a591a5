"""Randomness as a function of a key, never of process history.

A key is (seed, epoch, step, purpose) in training and (seed, purpose) in evaluation, so a resumed
trial draws what an uninterrupted one would have drawn, and evaluation does not depend on batches.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

Key = tuple[int | str, ...]
Noise = Literal["gaussian", "uniform"]


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

    def noise(self, like: Tensor, sigma: float, law: Noise) -> Tensor:
        """Of deviation `sigma`: N(0, sigma^2), or U(-L, L) with L = sqrt(3) sigma."""
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


_FILL = {
    "uniform": lambda tensor, source: tensor.uniform_(generator=source),
    "normal": lambda tensor, source: tensor.normal_(generator=source),
    "exponential": lambda tensor, source: tensor.exponential_(generator=source),
}
