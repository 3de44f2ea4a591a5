"""Multi-objective asynchronous successive halving: which trials are worth more epochs.

Source: Schmucker, Donini, Zafar, Salinas & Archambeau 2021 (arXiv:2106.12639), with the ranking by
non-dominated sorting and an epsilon-net.
Deviates:
    the epsilon-net starts at the point that dominates most hypervolume alone, where the paper draws
    a point at random: a decision is a function of the table, and a rung that keeps one keeps that;
    one bracket.
"""

from __future__ import annotations

from collections.abc import Sequence

import moocore
import numpy as np

from robustfront.search.pareto import Points


def best(points: Points, count: int) -> list[int]:
    """Rows of `count` of the points (n, m), best first: front by front, spread within a front.

    Distances are those of objectives scaled to the range they have among the points; hypervolume is
    against the worst error, 1.
    """
    if not len(points):
        return []
    low, high = points.min(axis=0), points.max(axis=0)
    scaled = (points - low) / np.where(high > low, high - low, 1.0)
    volumes = np.maximum(1 - points, 0).prod(axis=1)
    ranks = moocore.pareto_rank(points)
    chosen: list[int] = []
    for rank in range(int(ranks.max()) + 1):
        front = np.flatnonzero(ranks == rank)
        rows = epsilon_net(scaled[front], count - len(chosen), int(volumes[front].argmax()))
        chosen += [int(front[row]) for row in rows]
        if len(chosen) >= count:
            break
    return chosen


def epsilon_net(points: Points, count: int, first: int) -> list[int]:
    """Rows of `count` of the points (n, m): `first`, then always the one farthest from those
    chosen."""
    following = first
    columns = points.T.copy()
    nearest = np.full(len(points), np.inf)  # squared distance to the nearest of those chosen
    order: list[int] = []
    while len(order) < min(count, len(points)):
        order.append(following)
        offset = columns - columns[:, following, None]
        np.minimum(nearest, np.einsum("ij,ij->j", offset, offset), out=nearest)
        nearest[following] = -np.inf
        following = int(nearest.argmax())
    return order


class Halving:
    """The rungs of a sweep: what its trials had reached after grace * factor^k epochs.

    Args:
        grace: epochs of the first rung.
        factor: of n trials in a rung, floor(n / factor) go on.
    """

    def __init__(self, grace: int, factor: int) -> None:
        self.grace, self.factor = grace, factor
        self._rungs: dict[int, dict[str, Sequence[float]]] = {}
        self._best: dict[int, dict[int, frozenset[str]]] = {}  # of a rung, by `least`

    def is_rung(self, epoch: int) -> bool:
        """Whether trials are judged after so many epochs."""
        rung = self.grace
        while rung < epoch:
            rung *= self.factor
        return rung == epoch

    def record(self, trial: str, epoch: int, objectives: Sequence[float]) -> None:
        """What a trial has reached at a rung, all objectives minimised; the first word counts."""
        rung = self._rungs.setdefault(epoch, {})
        if trial not in rung:
            rung[trial] = objectives
            self._best.pop(epoch, None)

    def forget(self, trial: str) -> None:
        """A trial begins from scratch: what it had reached no longer counts."""
        for rung in self._rungs.values():
            rung.pop(trial, None)
        self._best.clear()

    def wants(self, trial: str, epoch: int, least: int = 1) -> bool:
        """Whether a trial of a rung is worth more epochs, as far as one can tell now.

        Args:
            least: so many of the rung go on, however few it holds.
        """
        known = self._best.setdefault(epoch, {})
        if least not in known:
            rung = self._rungs[epoch]
            points = np.array(list(rung.values()), dtype=float)
            names = list(rung)
            rows = best(points, max(least, len(rung) // self.factor))
            known[least] = frozenset(names[row] for row in rows)
        return trial in known[least]
