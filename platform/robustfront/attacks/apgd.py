"""Auto-PGD: projected gradient ascent that chooses its own step sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from robustfront.attacks.base import (
    ATTACKS,
    Attack,
    Surrogate,
    best_of,
    goal_of,
    part_of,
    value_and_gradient,
)
from robustfront.attacks.goals import DifferenceOfLogitsRatio, Goal
from robustfront.randomness import Rng
from robustfront.threats import Mixture, PerturbationSet, Threat
from robustfront.threats.balls import bracket

RandomOrZero = Literal["random", "zero"]


@ATTACKS.register
class APGD(Attack):
    """Auto-PGD; returns the iterate with the largest surrogate.

    linf, l2: u = P(x_k + s d(g)), x_{k+1} = P(x_k + 0.75 (u - x_k) + 0.25 (x_k - x_{k-1})), with
    s = 2 eps at first. At checkpoints (22, 41, 57, 70, 80, 87, 93, 99 of 100) an example whose
    surrogate rose in at most 75 % of the steps since the last one, or whose s was kept there
    without a new best, gets s / 2 and goes on from its best iterate. l1: steps along the signs of
    the steepest pixels: 5 % of them at first, and after every 4 % of the steps as many as the best
    perturbation has, over 1.5; s, of eps at first, is divided by 1.5 then, or starts anew from the
    best iterate where that has become sparser by 5 %.

    `loss`: the surrogate the attack is given, or the difference of logits ratio (evaluations only).
    `start`: random, or x itself. `shrinking_radius`: 30 % of the steps in a ball of 3 eps, 30 % in
    one of 2 eps, the rest in that of eps.

    Source: arXiv:2003.01690, algorithm 1; for l1 arXiv:2103.01208, section 4.
    Deviates: the value at the start counts for the first checkpoint; a random start is uniform in
    the ball (for l1, noise projected onto it) where the paper's is on its surface; l1 begins with
    5 % of the pixels from there too, for with the published 20 % it misses the optimum of linear
    models; examples that are fooled leave the search at steps 1, 2, 4, 8 and every tenth.
    """

    type: Literal["apgd"] = "apgd"
    loss: Literal["surrogate", "dlr"] = "surrogate"
    steps: PositiveInt = 100
    restarts: PositiveInt = 1
    start: RandomOrZero = "random"
    shrinking_radius: bool = False

    @property
    def name(self) -> str:
        """`apgd100`, `apgd100_dlr`, `apgd100x5` with five restarts."""
        loss = "_dlr" if self.loss == "dlr" else ""
        return f"apgd{self.steps}{loss}" + (f"x{self.restarts}" if self.restarts > 1 else "")

    @property
    def forward_equivalents(self) -> float:
        """A forward and a gradient at the start and after each step but the last, there a forward;
        one forward more to compare restarts."""
        return self.restarts * (2 * self.steps + 1 + (self.restarts > 1))

    @property
    def needs_labels(self) -> bool:
        """For the difference of logits ratio."""
        return self.loss == "dlr"

    @property
    def single_step(self) -> bool:
        """With one."""
        return self.steps == 1

    def search(
        self,
        model: nn.Module,
        x: Tensor,
        surrogate: Surrogate,
        threat: PerturbationSet,
        rng: Rng,
    ) -> Tensor:
        """The best iterate of all restarts, for each example."""
        if self.loss == "dlr":
            surrogate = DifferenceOfLogitsRatio(goal_of(self, surrogate).y)

        def run(_: int, rows: Tensor | slice, rng: Rng) -> Tensor:
            goal = part_of(surrogate, rows)
            return climb(model, x[rows], goal, threat, rng, ascent)

        ascent = Ascent(self.steps, self.start, self.shrinking_radius)
        return best_of(self.restarts, run, model, x, surrogate, rng)


@dataclass(frozen=True)
class Ascent:
    """One run of Auto-PGD; the fields are those of `apgd`."""

    steps: int
    start: RandomOrZero = "random"
    shrinking_radius: bool = False

    def phases(self) -> list[tuple[int, int]]:
        """Multiples of eps, each with its number of steps."""
        if not self.shrinking_radius:
            return [(1, self.steps)]
        some = int(0.3 * self.steps)
        return [(3, some), (2, some), (1, self.steps - 2 * some)]

    def share(self, phase: int) -> float | None:
        """Of the pixels, in the first l1 steps; None: as many as the start moves, over 1.5."""
        given = phase or (self.shrinking_radius and self.start == "random")
        return None if given else 0.05


def climb(
    model: nn.Module,
    x: Tensor,
    surrogate: Surrogate,
    threat: PerturbationSet,
    rng: Rng,
    ascent: Ascent,
) -> Tensor:
    """The best iterate (N, C, H, W) of one run of Auto-PGD."""
    x_adv = x
    for phase, (multiple, steps) in enumerate(ascent.phases()):
        balls = [(rows, ball.scaled(multiple)) for rows, ball in _balls(threat, len(x))]
        if phase == 0 and ascent.start == "random":
            parts = [_random(ball, x[rows], rng) for rows, ball in balls]
        else:
            parts = [ball.project(x_adv[rows], x[rows]) for rows, ball in balls]
        x_adv, share = torch.cat(parts), ascent.share(phase)
        rules = [(rows, _rule(ball, x[rows], x_adv[rows], steps, share)) for rows, ball in balls]
        x_adv = _ascend(model, x_adv, surrogate, rules, steps)
    return x_adv


def _balls(threat: PerturbationSet, n: int) -> list[tuple[slice, Threat]]:
    """The balls of consecutive parts of a batch."""
    parts = threat.parts if isinstance(threat, Mixture) else [(threat, n)]
    found, first = [], 0
    for ball, size in parts:
        if not isinstance(ball, Threat):
            raise TypeError(f"Auto-PGD searches in lp balls, not in {ball!r}")
        found.append((slice(first, first + size), ball))
        first += size
    return found


def _random(ball: Threat, x: Tensor, rng: Rng) -> Tensor:
    if ball.norm == "l1":
        # Sparse, as the steps are: a uniform point of the ball has something at every pixel.
        return ball.project(x + rng.normal(x), x)
    return ball.sample(x, rng)


def _rule(
    ball: Threat, x: Tensor, x_adv: Tensor, steps: int, share: float | None
) -> _Momentum | _Sparse:
    if ball.norm == "l1":
        return _Sparse(ball, x, x_adv, steps, share)
    return _Momentum(ball, x, x_adv, steps)


def _ascend(
    model: nn.Module,
    x_adv: Tensor,
    surrogate: Surrogate,
    rules: list[tuple[slice, _Momentum | _Sparse]],
    steps: int,
) -> Tensor:
    """The best of an ascent's iterates, its start x_adv among them."""
    found, left = x_adv.clone(), torch.arange(len(x_adv), device=x_adv.device)
    value, grad = value_and_gradient(model, x_adv, surrogate)
    best, best_grad, highest = x_adv, grad, value
    for k in range(steps):
        with torch.no_grad():
            x_adv = _joined([rule.move(x_adv[rows], grad[rows]) for rows, rule in rules])
            before = value
            if k + 1 == steps:
                value = surrogate(model(x_adv))
                found[left] = torch.where(_wide(value > highest), x_adv, best)
                break
        value, grad = value_and_gradient(model, x_adv, surrogate)
        with torch.no_grad():
            better = value > highest
            best = torch.where(_wide(better), x_adv, best)
            best_grad = torch.where(_wide(better), grad, best_grad)
            highest = torch.where(better, value, highest)
            rose = value > before
            for rows, rule in rules:
                back = rule.review(k, rose[rows], best[rows], highest[rows])
                if back is not None:
                    x_adv[rows] = torch.where(_wide(back), best[rows], x_adv[rows])
                    grad[rows] = torch.where(_wide(back), best_grad[rows], grad[rows])
            if isinstance(surrogate, Goal) and _is_time_to_look(k + 1):
                fooled = surrogate.fooled(highest)
                if bool(fooled.any()):
                    found[left] = best
                    stay = (~fooled).nonzero()[:, 0]
                    if not len(stay):
                        break
                    left, surrogate, rules = left[stay], surrogate.rows(stay), _kept(rules, stay)
                    x_adv, value, grad = x_adv[stay], value[stay], grad[stay]
                    best, best_grad, highest = best[stay], best_grad[stay], highest[stay]
    return found


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _is_time_to_look(steps: int) -> bool:
    """Whether to wait for the device and leave out who is fooled: often at first, then rarely."""
    return steps in (1, 2, 4, 8) or steps % 10 == 0


def _wide(flags: Tensor) -> Tensor:
    return flags.reshape(-1, 1, 1, 1)


def _kept(
    rules: list[tuple[slice, _Momentum | _Sparse]], stay: Tensor
) -> list[tuple[slice, _Momentum | _Sparse]]:
    """The rule of an evaluation's only ball, for the examples that stay."""
    ((_, rule),) = rules
    rule.keep(stay)
    return [(slice(None), rule)]


class _Momentum:
    """Steps within an linf or l2 ball: some inertia, and a size that is halved at checkpoints."""

    def __init__(self, ball: Threat, x: Tensor, x_adv: Tensor, steps: int) -> None:
        self.ball, self.x, self.before = ball, x, x_adv
        self.gaps = checkpoints(steps)
        self.moved = False
        self.size = x.new_full((len(x), 1, 1, 1), 2.0)
        self.rises = x.new_zeros(len(x))
        self.halved = torch.ones(len(x), dtype=torch.bool, device=x.device)
        self.highest = x.new_zeros(len(x))

    def move(self, x_adv: Tensor, grad: Tensor) -> Tensor:
        """The next iterate; the first one without inertia."""
        target = self.ball.project(self.ball.step(x_adv, self.x, grad, self.size, None), self.x)
        if self.moved:
            # x_adv + 0.75 (target - x_adv) + 0.25 (x_adv - before)
            mean = (0.75 * target).add_(x_adv, alpha=0.5).sub_(self.before, alpha=0.25)
            target = self.ball.project(mean, self.x)
        self.before, self.moved = x_adv, True
        return target

    def review(self, k: int, rose: Tensor, best: Tensor, highest: Tensor) -> Tensor | None:
        """Which examples go on from their best iterate, (N,), if any, after step k."""
        self.rises += rose
        gap = self.gaps.get(k + 1)
        if gap is None:
            return None
        stuck = self.rises <= 0.75 * gap
        flat = ~self.halved & (self.highest >= highest)
        self.halved, self.highest = stuck | flat, highest
        self.size = torch.where(_wide(self.halved), self.size / 2, self.size)
        self.rises = torch.zeros_like(self.rises)
        return self.halved

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the examples."""
        for name in ("x", "before", "size", "rises", "halved", "highest"):
            setattr(self, name, getattr(self, name)[rows])


class _Sparse:
    """Steps within an l1 ball, along the signs of the steepest pixels."""

    def __init__(
        self, ball: Threat, x: Tensor, x_adv: Tensor, steps: int, share: float | None
    ) -> None:
        self.ball, self.x = ball, x
        self.every = max(int(0.04 * steps), 1)
        if share is None:
            self.nonzero = _nonzero(x_adv - x)
            self.count = self.nonzero / 1.5
        else:
            self.nonzero = x.new_full((len(x),), x[0].numel())
            self.count = share * self.nonzero
        self.size = x.new_ones(len(x))

    def move(self, x_adv: Tensor, grad: Tensor) -> Tensor:
        """The next iterate."""
        steepness = grad.flatten(1).abs()
        fewer = (self.count.long() - 1).clamp(min=0)[:, None]
        least, _ = bracket(lambda t: (steepness > t).sum(1, keepdim=True), steepness, fewer)
        direction = torch.sign(grad) * (steepness > least).view_as(grad)
        length = direction.flatten(1).abs().sum(1).clamp(min=1)
        size = _wide(self.size * float(self.ball.eps) / length)
        return self.ball.project(x_adv + size * direction, self.x)

    def review(self, k: int, rose: Tensor, best: Tensor, highest: Tensor) -> Tensor | None:
        """Which examples go on from their best iterate, (N,), if any, after step k."""
        if (k + 1) % self.every:
            return None
        nonzero = _nonzero(best - self.x)
        sparser = nonzero < 0.95 * self.nonzero
        self.count, self.nonzero = nonzero / 1.5, nonzero
        self.size = torch.where(sparser, 1.0, (self.size / 1.5).clamp(0.1, 1))
        return sparser

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the examples."""
        for name in ("x", "nonzero", "count", "size"):
            setattr(self, name, getattr(self, name)[rows])


def _nonzero(delta: Tensor) -> Tensor:
    return (delta != 0).flatten(1).sum(1).to(delta.dtype)


def checkpoints(steps: int) -> dict[int, int]:
    """After how many steps the sizes are looked at, each with the number of steps since the last.

    The first after 22 % of them, each gap 3 % shorter than the one before, 6 % at least.
    """
    gap, shorter, least = (max(int(share * steps), 1) for share in (0.22, 0.03, 0.06))
    found, at = {}, gap
    while at <= steps:
        found[at] = gap
        gap = max(gap - shorter, least)
        at += gap
    return found
