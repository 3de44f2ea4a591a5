"""What a method trains against: one ball, or a mix of balls of several norms."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from pydantic import Field, NonNegativeFloat, ValidationInfo, field_validator
from torch import Tensor

from robustfront.randomness import Rng
from robustfront.registry import Component
from robustfront.threats.balls import Norm, PerturbationSet, Threat, require_within_the_box
from robustfront.threats.radius import Eps

_INVERSE_ORDER = {"linf": 0.0, "l2": 0.5, "l1": 1.0, "segment": 0.0}


@dataclass(frozen=True)
class Mixture:
    """A batch whose consecutive parts have different perturbation sets.

    Args:
        parts: (threat, number of examples), in the order of the batch.
        before: of each part, how many of its examples stand in other workers' batches before this.
    """

    parts: Sequence[tuple[Threat, int]]
    before: Sequence[int] = ()

    def part(self, rows: slice) -> Mixture:
        """The perturbation sets of some consecutive examples of the batch."""
        parts, before, start = [], [], 0
        for threat, size in self.parts:
            first, end = max(rows.start, start), min(rows.stop, start + size)
            if first < end:
                parts.append((threat, end - first))
                before.append(first - start)
            start += size
        return Mixture(parts, before)

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Each part by its own threat."""
        return self._each(lambda threat, a, b: threat.project(a, b), x_adv, x)

    def sample(self, x: Tensor, rng: Rng) -> Tensor:
        """Each part by its own threat, from a source of its own."""
        before = iter(self.before or [rng.first] * len(self.parts))

        def sample(threat: Threat, rows: Tensor) -> Tensor:
            return threat.sample(rows, Rng((*rng.key, threat.norm), next(before), rng.block))

        return self._each(sample, x)

    def step(
        self, x_adv: Tensor, x: Tensor, grad: Tensor, relative: float, absolute: float | None
    ) -> Tensor:
        """Each part by its own threat."""
        return self._each(
            lambda threat, a, b, c: threat.step(a, b, c, relative, absolute), x_adv, x, grad
        )

    def radius(self, x: Tensor) -> Tensor:
        """Each part's own."""
        return self._each(lambda threat, rows: threat.radius(rows), x)

    def _each(self, act: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        sizes = [size for _, size in self.parts]
        pieces = zip(*(torch.split(tensor, sizes) for tensor in tensors), strict=True)
        return torch.cat(
            [act(threat, *piece) for (threat, _), piece in zip(self.parts, pieces, strict=True)]
        )


class TrainThreat(Component):
    """The threat a method trains against; all of it may be searched.

    `eps` is the radius in `norm`. `mix` gives each norm its share of every batch. The radius of
    another norm p keeps the ratio of the reference `radii` (those of the job's threat, unless
    given); without references it is eps * d^((1/p - 1/norm) / 2), the geometric mean of the largest
    lp ball inside the ball of `norm` and the smallest one around it, in d dimensions.

    Source: E-AT (arXiv:2105.12508), section 3, for when one ball contains another.
    """

    norm: Norm = "linf"
    eps: Eps = Fraction(0)
    mix: dict[Norm, NonNegativeFloat] = Field(default_factory=dict)
    radii: dict[Norm, Eps] = Field(default_factory=dict)

    @field_validator("mix")
    @classmethod
    def _weights_sum_to_one(cls, mix: dict[Norm, float]) -> dict[Norm, float]:
        total = math.fsum(mix.values())
        if mix and abs(total - 1) > 1e-6:
            raise ValueError(f"the weights of a mix sum to 1, these to {total:g}")
        if mix.get("segment"):
            raise ValueError("a mix is one of linf, l2 and l1 balls, not of a segment")
        return mix

    @field_validator("eps")
    @classmethod
    def _within_the_box(cls, eps: Fraction, info: ValidationInfo) -> Fraction:
        return require_within_the_box(info.data.get("norm"), eps)

    def shares(self) -> dict[Norm, float]:
        """The norms that take part, with their shares of a batch."""
        return {norm: share for norm, share in self.mix.items() if share > 0} or {self.norm: 1.0}

    def threats(self, dimension: int, more: Sequence[Norm] = ()) -> dict[Norm, Threat]:
        """The ball of each norm that takes part, and of some more, for inputs of so many values."""
        return {norm: self._ball(norm, dimension) for norm in (*self.shares(), *more)}

    def balls(
        self, dimension: int, strength: float, more: Sequence[Norm] = ()
    ) -> dict[Norm, Threat]:
        """The same at a share `strength` of their radii."""
        share = Fraction(strength).limit_denominator(10**9)
        return {norm: ball.scaled(share) for norm, ball in self.threats(dimension, more).items()}

    def draw(self, n: int, dimension: int, strength: float, rng: Rng) -> PerturbationSet:
        """The perturbation sets of a batch of n examples, at a share `strength` of the radii.

        Parts are as large as the shares say, rounded at random so that they are right on average.
        """
        shares, balls = self.shares(), self.balls(dimension, strength)
        if len(balls) == 1:
            return next(iter(balls.values()))
        offset = float(rng.uniform(torch.empty(1, dtype=torch.float64))[0])
        total, edges = 0.0, [0]
        for share in shares.values():
            total += share
            edges.append(min(n, math.floor(total * n + offset)))
        edges[-1] = n
        sizes = [end - start for start, end in itertools.pairwise(edges)]
        return Mixture([part for part in zip(balls.values(), sizes, strict=True) if part[1]])

    def _ball(self, norm: Norm, dimension: int) -> Threat:
        reference = self.radii.get(self.norm)
        if norm == self.norm:
            eps = self.eps
        elif reference and norm in self.radii:
            eps = self.radii[norm] * self.eps / reference
        else:
            power = (_INVERSE_ORDER[norm] - _INVERSE_ORDER[self.norm]) / 2
            eps = self.eps * Fraction(f"{dimension**power:.6g}")
        largest = Fraction(1) if norm in ("linf", "segment") else eps
        return Threat(norm=norm, eps=min(eps, largest))
