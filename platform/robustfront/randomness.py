"""Randomness as a function of a key, never of process history.

A key is (seed, epoch, step, purpose) in training and (seed, purpose) in evaluation, so a resumed
trial draws what an uninterrupted one would have drawn, and evaluation does not depend on batches.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import torch
from torch import Tensor

Key = tuple[int | str, ...]


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
    """

    key: Key
    first: int = 0
    block: int = 128
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

    def child(self, *more: int | str) -> Rng:
        """An independent source for the same examples."""
        return Rng((*self.key, *more), self.first, self.block)

    def _blocks(self, like: Tensor, law: str) -> Tensor:
        self.draws += 1
        end = self.first + len(like)
        rows = []
        for index in range(self.first // self.block, -(-end // self.block)):
            source = generator(like.device, *self.key, law, self.draws, index)
            whole = torch.empty((self.block, *like.shape[1:]), dtype=like.dtype, device=like.device)
            _FILL[law](whole, source)
            start = index * self.block
            rows.append(whole[max(self.first - start, 0) : end - start])
        if not rows:
            return torch.empty_like(like)
        return rows[0] if len(rows) == 1 else torch.cat(rows)


_FILL = {
    "uniform": lambda tensor, source: tensor.uniform_(generator=source),
    "normal": lambda tensor, source: tensor.normal_(generator=source),
    "exponential": lambda tensor, source: tensor.exponential_(generator=source),
}
