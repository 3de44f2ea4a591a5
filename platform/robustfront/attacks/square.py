"""Square Attack: random search that only looks at the logits."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cache
from typing import ClassVar, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from robustfront.attacks.base import ATTACKS, Attack, Surrogate, goal_of
from robustfront.attacks.goals import Goal, Margin
from robustfront.randomness import Rng
from robustfront.threats import BALLS, Norm, PerturbationSet, Threat

_HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # queries
_AT_ONCE = 50  # queries whose randomness is drawn together
_REMEMBERED_CHANNELS = 3


@ATTACKS.register
class Square(Attack):
    """Square Attack: a change of one random square is kept if it raises the margin.

    linf: stripes of +-eps at first; then squares of +-eps, one sign for each channel. l2, l1: a
    tiling of bumps at first; then the mass of two random squares goes into one, as a bump beside
    what is there. The squares cover a share `p` of the image at first, half of it after 10, 50,
    200, 500, 1000, 2000 and 4000 queries. The model's gradient is not used.

    Source: arXiv:1912.00049, algorithms 1 to 3; l1 as in arXiv:2103.01208, section 5.
    Deviates: each example has its own squares; a square may touch the last row and column; an
    linf proposal that changes nothing, or that was refused since the last change, is not
    evaluated again: it has the same answer, and counts as a query.
    """

    norms: ClassVar[tuple[Norm, ...]] = BALLS

    type: Literal["square"] = "square"
    queries: PositiveInt = 5000
    p: float = Field(default=0.8, gt=0, le=1)

    @property
    def name(self) -> str:
        """`square5000`."""
        return f"square{self.queries}"

    @property
    def forward_equivalents(self) -> float:
        """A forward for each query, for examples that are never fooled."""
        return self.queries

    @property
    def needs_labels(self) -> bool:
        """It climbs the margin."""
        return True

    @torch.no_grad()
    def search(
        self,
        model: nn.Module,
        x: Tensor,
        surrogate: Surrogate,
        threat: PerturbationSet,
        rng: Rng,
    ) -> Tensor:
        """The last input that was kept."""
        goal = Margin(goal_of(self, surrogate).y)
        if not isinstance(threat, Threat):
            raise TypeError(f"Square Attack searches in lp balls, not in {threat!r}")
        kind: type[_Search] = _Signs if threat.norm == "linf" else _Bumps
        search = kind(model, x, goal, threat, rng)
        found, left = search.x_adv.clone(), torch.arange(len(x), device=x.device)
        for first in range(1, self.queries, _AT_ONCE):
            fooled = goal.fooled(search.value)
            if bool(fooled.any()):
                found[left] = search.x_adv
                stay = (~fooled).nonzero()[:, 0]
                if not len(stay):
                    return found
                left, goal, rng = left[stay], goal.rows(stay), rng.rows(stay)
                search.keep(stay)
            now = range(first, min(first + _AT_ONCE, self.queries))
            for query, random in zip(now, _draws(search.x, search.numbers, rng), strict=False):
                search.query(self._side(query, x), random)
        found[left] = search.x_adv
        return found

    def _side(self, query: int, x: Tensor) -> int:
        """Pixels along the side of a square."""
        share = self.p / 2 ** sum(query > limit for limit in _HALVED_AFTER)
        return round(math.sqrt(share * x.shape[2] * x.shape[3]))


def _draws(x: Tensor, numbers: int, rng: Rng) -> Iterator[Tensor]:
    """U[0, 1) for some queries, (N, numbers) each."""
    return iter(rng.uniform(x.new_empty(len(x), _AT_ONCE, numbers)).unbind(1))


class _Search(ABC):
    """What both kinds of proposals share.

    Args:
        x: (N, C, H, W).
        numbers: random numbers that a proposal takes for each example.
    """

    numbers: int

    def __init__(self, model: nn.Module, x: Tensor, goal: Goal, threat: Threat, rng: Rng) -> None:
        self.model, self.x, self.goal, self.threat = model, x, goal, threat
        self.eps = float(threat.eps)
        self.x_adv = self.first(rng)
        self.value = goal(model(self.x_adv))

    @abstractmethod
    def first(self, rng: Rng) -> Tensor:
        """Where the search begins."""

    @abstractmethod
    def query(self, side: int, random: Tensor) -> None:
        """One proposal for each example, (N, numbers) of U[0, 1)."""

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the examples."""
        self.x, self.x_adv, self.value = self.x[rows], self.x_adv[rows], self.value[rows]
        self.goal = self.goal.rows(rows)

    def signs(self, random: Tensor) -> Tensor:
        """+-1 from the last C numbers, (N, C, 1, 1)."""
        return torch.where(random[:, -self.x.shape[1] :] < 0.5, -1.0, 1.0)[:, :, None, None]


class _Signs(_Search):
    """linf: a square of +-eps, one sign for each channel."""

    def __init__(self, model: nn.Module, x: Tensor, goal: Goal, threat: Threat, rng: Rng) -> None:
        n, channels, height, width = x.shape
        self.numbers = 2 + channels
        super().__init__(model, x, goal, threat, rng)
        # Which proposals were refused since the last change, by signs and place.
        signs = 2 ** min(channels, _REMEMBERED_CHANNELS)
        proposals = signs * height * width
        self.refused = torch.zeros(n, proposals, dtype=torch.bool, device=x.device)
        self.side = 0

    def first(self, rng: Rng) -> Tensor:
        """Vertical stripes."""
        stripes = torch.where(rng.uniform(self.x[:, :, :1]) < 0.5, -self.eps, self.eps)
        return (self.x + stripes).clamp(0, 1)

    def query(self, side: int, random: Tensor) -> None:
        """Asks the model only about proposals whose answer is not known."""
        channels, height, width = self.x.shape[1:]
        side = min(max(side, 1), height, width)
        if side != self.side:
            self.side = side
            self.refused.zero_()
        signs = self.signs(random)
        window, corner = _window(random, side, self.x)
        proposed = (_cut(self.x, window, side) + self.eps * signs).clamp(0, 1)
        known = (proposed == _cut(self.x_adv, window, side)).flatten(1).all(1)
        known |= self.goal.fooled(self.value)
        place = (self._pattern(signs) * self.x[0, 0].numel() + corner)[:, None]
        if channels <= _REMEMBERED_CHANNELS:
            known |= self.refused.gather(1, place)[:, 0]
        rows = (~known).nonzero()[:, 0]
        if not len(rows):
            return
        candidates = self.x_adv.index_select(0, rows)
        _paste(candidates, window.index_select(0, rows), proposed.index_select(0, rows))
        value = self.goal.rows(rows)(self.model(candidates))
        better = value > self.value[rows]
        self.refused.scatter_(1, place, self.refused.gather(1, place) | ~known[:, None])
        changed = rows[better]
        if len(changed):
            self.x_adv[changed], self.value[changed] = candidates[better], value[better]
            self.refused[changed] = False

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the examples."""
        super().keep(rows)
        self.refused = self.refused[rows]

    def _pattern(self, signs: Tensor) -> Tensor:
        """A number for the signs of the first channels, (N,)."""
        bits = (signs[:, :_REMEMBERED_CHANNELS, 0, 0] > 0).long()
        return (bits << torch.arange(bits.shape[1], device=bits.device)).sum(1)


class _Bumps(_Search):
    """l2 and l1: mass moves from one square to another and takes the form of a bump there."""

    def __init__(self, model: nn.Module, x: Tensor, goal: Goal, threat: Threat, rng: Rng) -> None:
        self.numbers = 5 + x.shape[1]
        self.order = 2.0 if threat.norm == "l2" else 1.0
        super().__init__(model, x, goal, threat, rng)

    def first(self, rng: Rng) -> Tensor:
        """A tiling of bumps of random signs."""
        n, channels, height, width = self.x.shape
        side = max(min(height, width) // 5, 1)
        rows, columns = height // side, width // side
        signs = torch.where(rng.uniform(self.x.new_empty(n, channels, rows, columns)) < 0.5, -1, 1)
        tiles = torch.kron(signs.to(self.x.dtype), self._bump(side))
        delta = torch.zeros_like(self.x)
        top, left = (height - rows * side) // 2, (width - columns * side) // 2
        delta[:, :, top : top + rows * side, left : left + columns * side] = tiles
        return self._within(delta)

    def query(self, side: int, random: Tensor) -> None:
        """Asks the model about a proposal for each example."""
        channels, height, width = self.x.shape[1:]
        side = min(max(side, 3) // 2 * 2 + 1, height, width)
        delta = self.x_adv - self.x
        window, _ = _window(random, side, self.x)
        source, _ = _window(random[:, 2:], side, self.x)
        old = _cut(delta, window, side)
        bump = self._bump(side)
        turned = (random[:, 4] < 0.5)[:, None, None, None]
        new = torch.where(turned, bump.T, bump) * self.signs(random)
        new = new + old / self._norm(old, (2, 3)).clamp(min=1e-12)
        nothing = torch.zeros_like(old)
        rest = _paste(_paste(delta.clone(), source, nothing), window, nothing)
        # What the two squares hold, and what is left of the budget, shared by the channels.
        whole, kept = self._norm(delta, (1, 2, 3)), self._norm(rest, (1, 2, 3))
        power = self.order
        unspent = (self.eps**power - whole**power).clamp(min=0) / channels
        mass = (unspent + (whole**power - kept**power).clamp(min=0)) ** (1 / power)
        new = new / self._norm(new, (2, 3)).clamp(min=1e-12) * mass
        candidates = self._within(_paste(rest, window, new))
        value = self.goal(self.model(candidates))
        better = (value > self.value) & ~self.goal.fooled(self.value)
        self.x_adv = torch.where(better.reshape(-1, 1, 1, 1), candidates, self.x_adv)
        self.value = torch.where(better, value, self.value)

    def _within(self, delta: Tensor) -> Tensor:
        """x + delta with the whole budget spent, in the box."""
        if self.order == 2:
            delta = delta * (self.eps / self._norm(delta, (1, 2, 3)).clamp(min=1e-12))
            return (self.x + delta).clamp(0, 1)
        return self.threat.project(self.x + delta, self.x)

    def _norm(self, delta: Tensor, dim: tuple[int, ...]) -> Tensor:
        norms: Tensor = torch.linalg.vector_norm(delta, self.order, dim, keepdim=True)
        return norms

    def _bump(self, side: int) -> Tensor:
        bump = torch.tensor(_bump(side), dtype=self.x.dtype, device=self.x.device)
        return bump / self._norm(bump, (0, 1))


@cache
def _bump(side: int) -> list[list[float]]:
    """Two pyramids of opposite sign, one above the other, of a square's height in all."""

    def pyramid(rows: int) -> list[list[float]]:
        top, left = rows // 2, side // 2
        heights = [1 / (k + 1) ** 2 for k in range(max(top, left) + 1)]
        tails = [sum(heights[k:]) for k in range(len(heights))]
        form = [[tails[max(abs(i - top), abs(j - left))] for j in range(side)] for i in range(rows)]
        norm = math.sqrt(sum(value**2 for row in form for value in row))
        return [[value / norm for value in row] for row in form]

    below = [[-value for value in row] for row in pyramid(side - side // 2)]
    return pyramid(side // 2) + below if side > 1 else below


def _window(random: Tensor, side: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """A square of each example at a random place, from the first two numbers.

    Returns:
        Where its values stand in the flattened example, (N, C * side * side), and its upper left
        corner in a channel, (N,).
    """
    channels, height, width = x.shape[1:]
    top = (random[:, 0] * (height - side + 1)).long()
    left = (random[:, 1] * (width - side + 1)).long()
    corner = top * width + left
    along = torch.arange(side, device=x.device)
    within = (along[:, None] * width + along).flatten()
    planes = torch.arange(channels, device=x.device)[:, None] * (height * width)
    return corner[:, None] + (planes + within).flatten(), corner


def _cut(x: Tensor, window: Tensor, side: int) -> Tensor:
    """What stands in the window of each example, (N, C, side, side)."""
    return x.flatten(1).gather(1, window).view(len(x), x.shape[1], side, side)


def _paste(x: Tensor, window: Tensor, content: Tensor) -> Tensor:
    """Writes into the window of each example, in place."""
    x.view(len(x), -1).scatter_(1, window, content.flatten(1))
    return x
