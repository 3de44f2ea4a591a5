"""The state of a sweep as tables: its trials, and its front in two metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from robustfront.config import Job, as_trained
from robustfront.evaluation.records import Records
from robustfront.ledger import SweepState, Trial
from robustfront.search.members import mistakes_by_number
from robustfront.search.replicates import membership
from robustfront.tracking.front import Front


def trials_table(state: SweepState) -> pd.DataFrame:
    """One row a trial: what it is, its searched parameters, its last metrics."""
    rows = [
        {
            "trial": trial.id,
            "number": trial.number,
            "seed": trial.seed,
            "state": trial.status,
            "epoch": trial.epoch,
            "cost_epochs": trial.cost.epochs,
            "cost_cpu_seconds": trial.cost.cpu_seconds,
            "cost_gpu_seconds": trial.cost.gpu_seconds,
            "cost_forward_equivalents": trial.cost.forward_equivalents,
            "reason": "; ".join(trial.suspect) or trial.reason,
            "suspect": bool(trial.suspect),
            **searched(trial),
            **{_column(name): value for name, value in trial.metrics.items()},
        }
        for trial in state.trials.values()
    ]
    return pd.DataFrame(rows)


def records_table(records: Records) -> pd.DataFrame:
    """One row an example: label, plain prediction, prediction under each attack by its name;
    certificates, predictions and radii of smoothed classifiers as `certified:<name>`, ..."""
    columns = {"label": records.label, "plain": records.plain, **records.attacked}
    for kind in ("certified", "smoothed", "radii"):
        columns |= {f"{kind}:{name}": found for name, found in getattr(records, kind).items()}
    return pd.DataFrame(columns)


def searched(trial: Trial) -> dict[str, Any]:
    """The searched parameters of a trial; a mix norm by norm, and lambda beside beta."""
    flat: dict[str, Any] = {}
    for key, value in trial.values.items():
        nested = value if isinstance(value, dict) else {None: value}
        flat |= {key if name is None else f"{key}.{name}": v for name, v in nested.items()}
    if flat.get("method.beta"):
        flat["method.lambda"] = 1 / flat["method.beta"]
    return flat


def front_of(
    folder: Path,
    job: Job,
    state: SweepState,
    split: str = "val",
    axes: tuple[str | None, str | None] = (None, None),
) -> Front:
    """The front of a sweep in two metrics: the job's first two objectives, or their test errors."""
    table = trials_table(state)
    x, y = (*job.objectives, job.objectives[0])[:2]
    if split == "test":
        robust = f"test/robust_error/{_threat(job)}/{job.evaluate.final.attack.name}"
        x, y = "test/standard_error", robust
    keys = dict.fromkeys(key for trial in state.trials.values() for key in searched(trial))
    # Other axes are another question; so is the test split, which only members are measured on.
    objectives = job.objectives if split == "val" and axes == (None, None) else ()
    # Only the validation split has its predictions on disk.
    mistakes, problems = mistakes_by_number(state, job, folder) if objectives else ({}, [])
    x, y = axes[0] or x, axes[1] or y
    chances = membership(mistakes)
    known = tuple(keys), job.data.type, objectives, chances, tuple(problems), _long_names(job)
    return Front(folder.name, x, y, table, *known)


def _threat(job: Job) -> str:
    """What robustness is measured against; of several threats all at once."""
    return job.threat[0].name if len(job.threat) == 1 else "union"


def _long_names(job: Job) -> dict[str, str]:
    """The long names of the errors that a job calls by short ones."""
    threat = _threat(job)
    names = {
        "standard_error": "val/standard_error",
        "robust_error": f"val/robust_error/{threat}/{job.evaluate.attack.name}",
    }
    if job.evaluate.certify is not None:
        verifier = as_trained(job.evaluate.certify, job.smoothing).name
        names["certified_error"] = f"val/certified_error/{threat}/{verifier}"
        names["smoothed_error"] = f"val/smoothed_error/{verifier}"
    return names


def _column(metric: str) -> str:
    return metric.replace("/", "_") if metric.endswith("/examples") else metric
