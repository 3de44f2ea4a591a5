"""Trials whose workers train one model together, through Ray Train inside Tune."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
import torch.distributed as dist
from ray import train, tune
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.tune.integration.ray_train import TuneReportCallback

from robustfront.errors import StorageError
from robustfront.executors.task import Message, Task
from robustfront.executors.watchdog import watched
from robustfront.executors.worker import work
from robustfront.training.team import Team

SCRATCH = ".tune"  # in the sweep's folder, while it runs: what Tune and Train write
_PAUSE = 0.02  # seconds between looks for a verdict


@ray.remote(num_cpus=0)
class Verdicts:
    """Whether trials go on after what they have said: told by the driver, asked by the workers.

    A trial of several workers is not stopped by Tune, which may leave what they hold reserved: its
    workers ask, and end by themselves.
    """

    def __init__(self) -> None:
        self._told: dict[tuple[str, int], bool] = {}

    async def tell(self, trial: str, number: int, goes_on: bool) -> None:
        """The driver's verdict on a message of a Tune trial, by its number from 0."""
        self._told[trial, number] = goes_on

    async def ask(self, trial: str, number: int) -> bool:
        """Wait for the verdict on a message."""
        while (trial, number) not in self._told:
            await asyncio.sleep(_PAUSE)
        return self._told[trial, number]


def train_in_team(
    config: dict[str, Any], raw: list[Any], verdicts: Any, timeout: float | None
) -> None:
    """A trial's own process: starts the workers, relays what they say, and ends after them.

    It dies with its workers, so that Tune, and nobody else, counts how often they are lost.

    Args:
        raw: holds the reference to the data, which only the workers read.
    """
    task = Task(**config["task"])
    resources = task.config["resources"]
    each = {"CPU": resources["cpu"]} | ({"GPU": 1} if resources["gpu"] else {})
    name = tune.get_context().get_trial_id()
    trainer = TorchTrainer(
        _worker,
        train_loop_config={
            "task": config["task"],
            "raw": raw,
            "verdicts": verdicts,
            "name": name,
            "timeout": timeout,
        },
        scaling_config=train.ScalingConfig(
            # A finished model is measured by one.
            num_workers=resources["workers"] if task.kind == "train" else 1,
            use_gpu=bool(resources["gpu"]),
            resources_per_worker=each,
        ),
        run_config=train.RunConfig(
            name=uuid.uuid4().hex,  # Train would go on from what it finds under an old name
            storage_path=str(Path(task.folder).parents[1] / SCRATCH),
            callbacks=[TuneReportCallback()],  # type: ignore[list-item, no-untyped-call]
            failure_config=train.FailureConfig(max_failures=0),
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        if (end := _end(error)) is None:
            raise
        reason = str(error).strip().splitlines()[-1]
        tune.report({"message": json.dumps({"end": end, "reason": reason}), "number": -1})


class _Crashed(RuntimeError):
    """An error of the trial's own."""


class _PeerLost(RuntimeError):
    """Another worker's process is gone."""


def _end(error: TrainingFailedError) -> str | None:
    """How a trial ended whose workers failed; None where a worker was lost.

    Train passes on its workers' errors as texts.
    """
    failures = [str(failure) for failure in getattr(error, "worker_failures", {}).values()]
    if any(StorageError.__name__ in failure for failure in failures):
        return "full"
    own = bool(failures) and all(_Crashed.__name__ in failure for failure in failures)
    return "crashed" if own else None


def _worker(config: dict[str, Any]) -> None:
    """One of the workers; all say the same, and the first one is heard."""
    task = Task(**config["task"])
    said = watched(work(task, ray.get(config["raw"][0])), task, config["timeout"])
    for number, message in enumerate(_or_raise(said)):
        train.report({"message": json.dumps(message), "number": number})
        if not _goes_on(config, number):
            return


def _or_raise(messages: Iterator[Message]) -> Iterator[Message]:
    """A crash of one worker must end all: the others would wait for it for ever."""
    for message in messages:
        end, reason = message.get("end"), message.get("reason", "")
        if end == "full":
            raise StorageError(reason)
        if end == "crashed":
            raise _PeerLost(reason) if "closed by peer" in reason else _Crashed(reason)
        yield message


def _goes_on(config: dict[str, Any], number: int) -> bool:
    team = Team.here()
    verdict = [team.leads and ray.get(config["verdicts"].ask.remote(config["name"], number))]
    if team.size > 1:
        dist.broadcast_object_list(verdict, src=0)
    return bool(verdict[0])
