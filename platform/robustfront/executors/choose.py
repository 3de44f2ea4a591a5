"""The executor a sweep asks for; Ray is imported only where it is wanted."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from robustfront.config import Job, TrialConfig
from robustfront.data import Corrupted, RawData, split_data
from robustfront.errors import ConfigError
from robustfront.executors.submit import check_submitter
from robustfront.executors.task import Work, ablated_data
from robustfront.search.space import Space

Kind = Literal["ray", "inline"]


class Executor(Protocol):
    """Runs what a driver hands out."""

    concurrency: int

    def run(self, driver: Work) -> None:
        """Work until the driver has nothing more."""

    def close(self) -> None:
        """Give back what was taken."""


def make_executor(kind: Kind, job: Job, folder: Path, address: str | None) -> Executor:
    """An executor that can run the job; nothing of the sweep is written yet.

    Args:
        folder: where the sweep's folder is, or is to be.

    Raises:
        ConfigError: it cannot: too few resources or examples, images too small for the model, or
            no cluster at the address.
        DataError: the data cannot be read.
    """
    if kind == "inline":
        from robustfront.executors.inline import InlineExecutor

        return InlineExecutor(job, checked_data(job))
    check_submitter()
    _prepare_ray(private=address is None)
    from robustfront.executors.ray import RayExecutor

    return RayExecutor(job, checked_data(job), folder, address)


def checked_data(job: Job) -> RawData:
    """The data, once they are known to be enough and to fit the model, in all that may be tried.

    Raises:
        ConfigError: with every problem.
        DataError: the data cannot be read.
    """
    raw = job.data.load()
    if job.evaluate.corruptions is not None:
        Corrupted(Path(job.evaluate.corruptions), job.data)
    problems: dict[str, None] = {}
    for config in kinds(job):
        other = ablated_data(config.data.model_dump(mode="json"), job)
        own = config.data.load() if other else raw
        try:
            data = split_data(config.data, own, torch.device("cpu"))
            config.build_model(data.shape, data.classes, data.mean, data.std)
        except ConfigError as error:
            problems |= dict.fromkeys(error.problems)
    if problems:
        raise ConfigError(job.name, list(problems))
    return raw


def kinds(job: Job) -> list[TrialConfig]:
    """The job, and a trial for each pair of data and model in its cells and at the ends of what is
    searched."""
    spaces: list[tuple[dict[str, Any], dict[str, Any]]] = [({}, job.search_space)]
    if job.ablation is not None:
        spaces = [(cell.settings, job.ablation.nuisance_in(cell)) for cell in job.ablation.cells()]
    settings = [{**fixed, **values} for fixed, raw in spaces for values in ({}, *_ends(raw))]
    trials = [job.trial(one, 0) for one in settings]
    return [*{str((trial.data, trial.model)): trial for trial in [job, *trials]}.values()]


def _ends(space: dict[str, Any]) -> list[dict[str, Any]]:
    """The ends of what a search space says of data and model."""
    return [
        values
        for key, values in Space.parse(space, "search_space").probes()
        if key.startswith(("data.", "model."))
    ]


def _prepare_ray(private: bool) -> None:
    """Ray reads these when it is imported.

    Its uv hook would build an environment for each worker; Tune's own logs, snapshots and checks
    are not wanted, the ledger takes their place.
    """
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"
    os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = "86400"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    if private and "ray" not in sys.modules:
        # A token that only this process and its children know keeps others on the machine out. A
        # process that has imported Ray before would not show it to the Ray that it starts.
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def cores() -> int:
    """How many of this machine's cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS


def local_concurrency(job: Job) -> int:
    """How many trials fit on this machine at once."""
    totals = {
        "CPU": float(cores()),
        "GPU": float(torch.cuda.device_count()),
    }
    return concurrency(job, totals)


def concurrency(job: Job, totals: Mapping[str, float]) -> int:
    """How many trials run at once where there is so much of each resource."""
    fitting = int(totals.get("CPU", 0) // job.resources.cpu)
    gpus = int(totals.get("GPU", 0))
    if job.resources.gpu == "auto" and job.resources.workers == 1:
        # Their memory will tell how many share one; no more can run than there are cores.
        fitting = fitting if gpus else 0
    elif job.resources.gpu:
        # A worker never spans two GPUs. In binary fractions 1 / 0.1 may fall just short of 10.
        fitting = min(fitting, gpus * int(1 / job.resources.gpus + 1e-9))
    fitting //= job.resources.workers
    asked = job.search.max_concurrent
    return fitting if asked == "auto" else min(asked, fitting)
