"""Pareto fronts, hypervolume and attainment surfaces; every objective is minimised.

A row with a non-finite value is the result of a trial that failed: it is ignored everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import moocore
import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64]  # (n, objectives)


def non_dominated(points: Points) -> npt.NDArray[np.bool_]:
    """Which points (n, m) are on the front, (n,).

    A point is dominated by one that is nowhere worse and somewhere better, so all copies of a
    point of the front are members. Rows with a non-finite value neither are nor dominate.
    """
    members = np.zeros(len(points), dtype=np.bool_)
    if len(points):
        members[:] = np.isfinite(points).all(axis=1)
    if members.any():
        members[members] = moocore.is_nondominated(points[members], keep_weakly=True)
    return members


def hypervolume(points: Points, reference: Sequence[float]) -> float:
    """Volume between the front of points (n, m) and a reference point (m,) worse than the front.

    Points beyond the reference add nothing; without points it is 0.
    """
    front = points[non_dominated(points)]
    if not len(front):
        return 0.0
    return float(moocore.hypervolume(front, ref=np.asarray(reference, dtype=np.float64)))


def attainment(points_by_seed: Sequence[Points], level: float) -> Points:
    """Corners of the region that a share `level` of the seeds attain, sorted by first objective.

    A seed attains what one of its points (n, 2) weakly dominates. `level` 0.5 gives the median
    front, 1 what every seed attains. A seed without finite points attains nothing.

    Raises:
        ValueError: a level outside (0, 1].
    Source: Fonseca, Guerreiro, Lopez-Ibanez & Paquete 2011, through moocore.
    """
    if not 0 < level <= 1:
        raise ValueError(f"a level of attainment lies in (0, 1], got {level}")
    finite = [points[non_dominated(points)] for points in points_by_seed]
    fronts = [front for front in finite if len(front)]
    # rounded, or 0.3 of 10 seeds (3.0000000000000004) would ask for 4
    needed = math.ceil(round(level * len(points_by_seed), 9))
    if not fronts or needed > len(fronts):
        return np.zeros((0, 2))
    seeds = np.repeat(np.arange(len(fronts)), [len(front) for front in fronts])
    percentile = 100 * needed / len(fronts)
    corners = moocore.eaf(np.concatenate(fronts), sets=seeds, percentiles=[percentile])[:, :2]
    return np.asarray(corners[np.argsort(corners[:, 0])], dtype=np.float64)


def staircase(points: Points) -> Points:
    """Corners of the step function through the front of points (n, 2), from left to right.

    Between two neighbours of the front nothing better is attained than the worse of both, so the
    step first goes right, then down: 2 k - 1 corners for k distinct members.
    """
    front = np.unique(points[non_dominated(points)].reshape(-1, 2), axis=0)
    corners = np.repeat(front, 2, axis=0)[: max(2 * len(front) - 1, 0)]
    corners[1::2] = np.column_stack([front[1:, 0], front[:-1, 1]])
    return corners
