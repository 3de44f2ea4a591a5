"""Targeted FAB: the nearest point beyond a decision boundary."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from robustfront.attacks.apgd_t import rivals
from robustfront.attacks.base import (
    ATTACKS,
    Attack,
    Surrogate,
    best_of,
    goal_of,
    value_and_gradient,
)
from robustfront.attacks.goals import Goal
from robustfront.randomness import Rng
from robustfront.threats import BALLS, Norm, PerturbationSet, Threat
from robustfront.threats.balls import size_of

_BIAS = 0.1  # the largest weight of the step that starts from x
_OVERSHOOT = 1.05
_BACK = 0.9  # how much of a misclassified point's distance to x is kept
_MOST_SOLUTIONS = 30  # of the linear pieces that a way to the boundary is solved in; a few suffice
_FOR_EVER = 1e30


@ATTACKS.register
class TargetedFAB(Attack):
    """Fast adaptive boundary attack towards one wrong class after another.

    With the boundary between label y and class t linearised at x_k, d and d_0 the shortest ways to
    it from x_k and from x within the box, a = min(|d| / (|d| + |d_0|), 0.1):
    x_{k+1} = (1 - a) (x_k + 1.05 d) + a (x + 1.05 d_0), clipped; a misclassified point goes back to
    x + 0.9 (x_{k+1} - x). An example is fooled once a misclassified point lies within eps.

    Source: arXiv:1907.02044, algorithm 1; targets as in arXiv:2003.01690, section 5.
    Deviates: it ends for an example that is fooled within eps, as only that is asked.
    """

    norms: ClassVar[tuple[Norm, ...]] = BALLS

    type: Literal["fab_t"] = "fab_t"
    steps: PositiveInt = 100
    targets: PositiveInt = 9

    @property
    def name(self) -> str:
        """`fab100_t9`."""
        return f"fab{self.steps}_t{self.targets}"

    @property
    def forward_equivalents(self) -> float:
        """Two forwards and a gradient for each step, for examples that are never fooled."""
        return 1 + self.targets * (3 * self.steps + 1)

    @property
    def needs_labels(self) -> bool:
        """Targets are wrong classes."""
        return True

    def search(
        self,
        model: nn.Module,
        x: Tensor,
        surrogate: Surrogate,
        threat: PerturbationSet,
        rng: Rng,
    ) -> Tensor:
        """A misclassified input within eps where one is found, else x; draws nothing."""
        goal = goal_of(self, surrogate)
        if not isinstance(threat, Threat):
            raise TypeError(f"FAB searches in lp balls, not in {threat!r}")
        ranked = rivals(model, x, goal.y)

        def run(number: int, rows: Tensor | slice, _: Rng) -> Tensor:
            return self._run(model, x[rows], goal.rows(rows), ranked[rows, number], threat)

        return best_of(min(self.targets, ranked.shape[1]), run, model, x, goal, rng)

    def _run(
        self, model: nn.Module, x: Tensor, goal: Goal, target: Tensor, threat: Threat
    ) -> Tensor:
        found, left = x.clone(), torch.arange(len(x), device=x.device)
        point, y = x, goal.y
        for _ in range(self.steps):
            gap, slope = value_and_gradient(model, point, _gap(y, target))
            with torch.no_grad():
                point = _towards(x, point, gap, slope, threat.norm)
                wrong = model(point).argmax(1) != y
                fooled = wrong & (threat.distance(point, x) <= float(threat.eps))
                back = torch.where(wrong, _BACK, 1.0).reshape(-1, 1, 1, 1)
                if bool(fooled.any()):
                    found[left[fooled]] = point[fooled]
                point = x + back * (point - x)
                if bool(fooled.any()):
                    stay = (~fooled).nonzero()[:, 0]
                    if not len(stay):
                        break
                    left, x, point = left[stay], x[stay], point[stay]
                    y, target = y[stay], target[stay]
        return found


def _gap(y: Tensor, target: Tensor) -> Surrogate:
    """z_t - z_y of each example, (N,)."""
    return lambda logits: (
        logits.gather(1, target[:, None])[:, 0] - logits.gather(1, y[:, None])[:, 0]
    )


def _towards(x: Tensor, point: Tensor, gap: Tensor, slope: Tensor, norm: Norm) -> Tensor:
    """The next point: a little beyond the linearised boundary, drawn towards x."""
    rise = (slope * (point - x)).flatten(1).sum(1)
    start, needed = torch.cat([point, x]), torch.cat([-gap, rise - gap])
    ways = to_hyperplane(start, torch.cat([slope, slope]), needed, norm)
    lengths = size_of(ways, norm).clamp(min=1e-8)
    way, way_from_x = ways.chunk(2)
    length, length_from_x = lengths.chunk(2)
    bias = (length / (length + length_from_x)).clamp(max=_BIAS).reshape(-1, 1, 1, 1)
    mixed = (1 - bias) * (point + _OVERSHOOT * way) + bias * (x + _OVERSHOOT * way_from_x)
    return mixed.clamp(0, 1)


def to_hyperplane(x: Tensor, slope: Tensor, rise: Tensor, norm: Norm) -> Tensor:
    """argmin ||d||_p subject to <slope, d> = rise and 0 <= x + d <= 1, (N, C, H, W).

    Where the box holds no such point: the d that comes closest to the hyperplane.

    Args:
        x: (N, C, H, W) in [0, 1].
        slope: (N, C, H, W).
        rise: (N,).
    """
    direction = torch.sign(slope) * torch.sign(rise).reshape(-1, 1, 1, 1)
    # 1 - x upwards, x downwards, 0 where nothing moves.
    room = (0.5 * direction.abs() + (0.5 - x) * direction).flatten(1).clamp(min=0)
    gain, needed = slope.flatten(1).abs(), rise.abs()[:, None]
    if norm == "l1":
        size = _fill_steepest(gain, room, needed)
    else:
        speed = torch.ones_like(gain) if norm == "linf" else gain
        size = _grow_together(gain, speed, room, needed)
    return direction * size.view_as(x)


def _fill_steepest(gain: Tensor, room: Tensor, needed: Tensor) -> Tensor:
    """The pixels of the largest gain as far as they can go, until the need is met."""
    steepness, order = gain.sort(dim=1, descending=True)
    most = room.gather(1, order)
    before = (steepness * most).cumsum(1) - steepness * most
    used = torch.minimum((needed - before).clamp(min=0) / steepness.clamp(min=1e-30), most)
    return torch.zeros_like(gain).scatter_(1, order, used * (steepness > 0))


def _grow_together(gain: Tensor, speed: Tensor, room: Tensor, needed: Tensor) -> Tensor:
    """min(t * speed, room) with the t that meets the need.

    The sum of gains is concave and piecewise linear in t, so Newton's method from t = 0 only ever
    adds pixels to those that are at their end, and stops when there are no more to add.
    """
    rate, full = gain * speed, gain * room
    # As numbers: products with masks are several times faster than choices by them.
    at_end = (room <= 0).to(room.dtype)
    time = torch.zeros_like(needed)
    for _ in range(_MOST_SOLUTIONS):
        stopped = torch.linalg.vecdot(full, at_end)[:, None]
        rising = torch.linalg.vecdot(rate, 1 - at_end)[:, None]
        exact = (needed - stopped) / rising.clamp(min=1e-30)
        time = torch.where(rising > 0, exact, _FOR_EVER)
        now = torch.maximum(at_end, (time * speed >= room).to(room.dtype))
        if torch.equal(now, at_end):
            break
        at_end = now
    return torch.minimum(time * speed, room)
