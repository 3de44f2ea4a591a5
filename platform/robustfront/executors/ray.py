"""Trials on Ray: Tune executes and remembers nothing that matters; the ledger does."""

from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import asdict
from functools import partial
from typing import Any

import ray
from ray import tune
from ray.tune.callback import Callback as TuneCallback
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from robustfront.config import Job, Resources
from robustfront.data import RawData
from robustfront.errors import ConfigError
from robustfront.executors.choose import concurrency
from robustfront.executors.driver import Driver
from robustfront.executors.task import Task
from robustfront.executors.worker import crash_reason, work

# Tune pickles searcher, scheduler and callbacks when a Tuner is made. They hold the name of their
# sweep and find the driver here, in the process it lives in.
_DRIVERS: dict[str, Driver] = {}


class RayExecutor:
    """Runs trials through Tune, as many at once as the resources allow.

    Args:
        job: its resources are checked against those of the cluster.
        address: of a cluster; None starts a private Ray on this machine's loopback interface.

    Raises:
        ConfigError: the cluster cannot be reached, or has less than one trial asks for.
    """

    def __init__(self, job: Job, raw: RawData, address: str | None = None) -> None:
        _connect(address)
        try:
            total = ray.cluster_resources()  # type: ignore[no-untyped-call]
            _check_resources(job.resources, total)
            self.concurrency = concurrency(job, total)
            # One copy a node, shared by its workers.
            self._raw = ray.put(raw)
        except BaseException:
            ray.shutdown()
            raise

    def run(self, driver: Driver) -> None:
        """Work until the driver has nothing more."""
        # Tune looks for its own logs at the end, and warns of each that is not there.
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
        name = str(driver.folder)
        scratch = driver.folder / ".tune"
        shutil.rmtree(scratch, ignore_errors=True)
        _DRIVERS[name] = driver
        request = driver.job.resources
        trainable = tune.with_resources(
            tune.with_parameters(_trainable, raw=self._raw),
            {"cpu": request.cpu, "gpu": request.gpu},
        )
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=_Searcher(name),
                scheduler=_Scheduler(name),
                num_samples=-1,
                max_concurrent_trials=self.concurrency,
                reuse_actors=True,
                trial_dirname_creator=_folder_name,
            ),
            run_config=tune.RunConfig(
                name="run",
                storage_path=str(scratch),
                callbacks=[_Callback(name)],
                failure_config=tune.FailureConfig(max_failures=driver.job.retries),
                verbose=0,
            ),
        )
        try:
            tuner.fit()
        finally:
            del _DRIVERS[name]
            shutil.rmtree(scratch, ignore_errors=True)

    def close(self) -> None:
        """Leave the cluster; a private Ray ends."""
        ray.shutdown()


def _connect(address: str | None) -> None:
    start = partial(
        ray.init, log_to_driver=False, configure_logging=False, logging_level=logging.ERROR
    )
    if address is not None:
        try:
            start(address=address)
        except (ConnectionError, RuntimeError, ValueError) as error:
            problem = f"got {address!r}, no Ray cluster answers there ({error})"
            raise ConfigError("--address", [problem]) from None
        return
    # "local": the default would attach to any Ray that happens to run on this machine.
    start(
        address="local",
        num_cpus=len(os.sched_getaffinity(0)),
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
    )


def _check_resources(request: Resources, total: dict[str, float]) -> None:
    problems = [
        f"resources.{key}: got {asked:g} for one trial, the cluster has {total.get(name, 0):g}"
        for key, name, asked in (("cpu", "CPU", request.cpu), ("gpu", "GPU", request.gpu))
        if asked > total.get(name, 0)
    ]
    if problems:
        raise ConfigError("resources", problems)


def _folder_name(trial: TuneTrial) -> str:
    return str(trial.trial_id)


def _trainable(config: dict[str, Any], raw: Any) -> None:
    """Runs in a worker; `raw` is the data, read from the node's object store."""
    for message in work(Task(**config["task"]), raw):
        tune.report({"message": json.dumps(message)})  # as text: Tune flattens nested results


class _Searcher(Searcher):
    """Hands out what the driver hands out."""

    def __init__(self, name: str) -> None:
        super().__init__(metric=None, mode=None)
        self.name = name

    def suggest(self, trial_id: str) -> Any:
        task = _DRIVERS[self.name].next()
        if isinstance(task, Task):
            return {"task": asdict(task)}
        return None if task == "wait" else Searcher.FINISHED

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """The driver knows already."""

    def save(self, checkpoint_path: str) -> None:
        """The ledger is the record."""

    def restore(self, checkpoint_path: str) -> None:
        """The ledger is the record."""


class _Scheduler(FIFOScheduler):
    """Commits each report before Tune goes on, and stops what the driver stops."""

    def __init__(self, name: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.name = name

    def on_trial_result(self, _: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        driver = _DRIVERS[self.name]
        message = json.loads(result["message"])
        return self.CONTINUE if driver.heard(_task(trial), message) else self.STOP


class _Callback(TuneCallback):
    """Tells the driver of starts and of crashes that no retry mended."""

    def __init__(self, name: str) -> None:
        self.name = name

    def on_trial_start(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        _DRIVERS[self.name].started(_task(trial))

    def on_trial_error(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        task = _task(trial)
        _DRIVERS[self.name].crashed(task, crash_reason(task))


def _task(trial: TuneTrial) -> Task:
    return Task(**trial.config["task"])
