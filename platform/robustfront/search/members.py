"""Who is on the front of a sweep, by the job's objectives."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from robustfront.config import Job
from robustfront.errors import DataError
from robustfront.evaluation.records import Records
from robustfront.ledger import SweepState, Trial
from robustfront.search.pareto import hypervolume, non_dominated
from robustfront.search.replicates import Mistakes


def objectives_of(trial: Trial, job: Job) -> list[float]:
    """A trial's objectives; the worst error for each where it diverged."""
    if trial.status == "diverged":
        return [1.0] * len(job.objectives)
    return [trial.metrics[name] for name in job.objectives]


def members(trials: Iterable[Trial], job: Job) -> list[Trial]:
    """The finished trials that no other finished one dominates."""
    finished = [trial for trial in trials if trial.status == "finished"]
    points = [objectives_of(trial, job) for trial in finished]
    array = np.array(points, dtype=float).reshape(len(finished), len(job.objectives))
    on_front = non_dominated(array)
    return [trial for trial, member in zip(finished, on_front, strict=True) if member]


def mistakes_by_number(
    state: SweepState, job: Job, folder: Path
) -> tuple[dict[int, list[Mistakes]], list[str]]:
    """What the finished trials of each proposal get wrong on the validation split.

    Args:
        folder: of the sweep.

    Returns:
        By number of the proposal one array (examples, objectives) for each seed; and the problems
        with records that cannot be read.
    """
    found: dict[int, list[Mistakes]] = defaultdict(list)
    problems = []
    for trial in state.trials.values():
        if trial.status == "finished":
            try:
                path = folder / "trials" / trial.id / "records.npz"
                mistakes = Records.load(path).mistakes("val")
                columns = [mistakes[name] for name in job.objectives]
                found[trial.number].append(np.column_stack(columns))
            except DataError as error:
                problems.append(str(error))
    return dict(found), problems


def sweep_hypervolume(front: list[Trial], job: Job) -> float:
    """Volume that a front dominates within the unit cube; the reference is the worst error, 1."""
    points = np.array([objectives_of(trial, job) for trial in front], dtype=float)
    return hypervolume(points, [1.0] * len(job.objectives)) if len(front) else 0.0
