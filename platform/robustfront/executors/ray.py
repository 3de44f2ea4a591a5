"""Trials on Ray: Tune executes and remembers nothing that matters; the ledger does."""

from __future__ import annotations

import json
import logging
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import ray
from ray import tune
from ray._private import ray_constants
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.tune.callback import Callback as TuneCallback
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from robustfront.config import Job, Resources
from robustfront.data import RawData
from robustfront.errors import ConfigError, is_full
from robustfront.executors.choose import concurrency, cores
from robustfront.executors.ray_team import SCRATCH, Verdicts, train_in_team
from robustfront.executors.task import Task, Work
from robustfront.executors.watchdog import silence, watched
from robustfront.executors.worker import work
from robustfront.problems import making_room_for

# Tune pickles searcher, scheduler and callbacks when a Tuner is made. They hold the name of their
# sweep and find the driver here, in the process it lives in.
_DRIVERS: dict[str, Work] = {}

_KNOCK = 10.0  # seconds until an address counts as silent


class RayExecutor:
    """Runs trials through Tune, as many at once as the resources allow.

    Args:
        job: its resources are checked against those of the cluster.
        address: of a cluster; None starts a private Ray on this machine's loopback interface.

    Raises:
        ConfigError: the cluster cannot be reached, has less than one trial asks for, or has nodes
            that do not see the sweep's folder.
    """

    def __init__(self, job: Job, raw: RawData, folder: Path, address: str | None = None) -> None:
        _connect(address)
        try:
            asked = job.search.max_concurrent
            if address is None or asked == "auto":
                total = ray.cluster_resources()  # type: ignore[no-untyped-call]
                _check_resources(job.resources, total)
                asked = concurrency(job, total)
            # Else the cluster may be empty still: it grows by what waits.
            self.concurrency = asked
            _check_storage(folder)
            # One copy a node, shared by its workers.
            self._raw = ray.put(raw)
        except BaseException:
            ray.shutdown()
            raise

    def run(self, driver: Work) -> None:
        """Work until the driver has nothing more."""
        # Tune looks for its own logs at the end, and warns of each that is not there.
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
        name = str(driver.folder)
        scratch = driver.folder / SCRATCH
        shutil.rmtree(scratch, ignore_errors=True)
        _DRIVERS[name] = driver
        verdicts = None
        if driver.job.resources.workers > 1:
            verdicts = Verdicts.remote()  # type: ignore[attr-defined]
        tuner = tune.Tuner(
            self._trainable(driver.job, verdicts),
            tune_config=tune.TuneConfig(
                search_alg=_Searcher(name),
                scheduler=_Scheduler(name, verdicts),
                num_samples=-1,
                max_concurrent_trials=self.concurrency,
                reuse_actors=True,
                trial_dirname_creator=_folder_name,
            ),
            run_config=tune.RunConfig(
                name="run",
                storage_path=str(scratch),
                callbacks=[_Callback(name)],
                failure_config=tune.FailureConfig(max_failures=driver.job.infrastructure_retries),
                verbose=0,
            ),
        )
        try:
            with _low_on_memory_is_lost():
                tuner.fit()
        except Exception as error:
            if not is_full(error):
                raise
            driver.halt(f"{driver.folder}: the disk is full")
        finally:
            del _DRIVERS[name]
            shutil.rmtree(scratch, ignore_errors=True)

    def _trainable(self, job: Job, verdicts: Any) -> Any:
        """What runs in a trial, with what it holds while it runs."""
        timeout = job.progress_timeout
        if verdicts is None:
            alone = tune.with_parameters(_train, raw=self._raw, timeout=timeout)
            return tune.with_resources(alone, _held)
        team = tune.with_parameters(
            train_in_team,
            raw=[self._raw],
            verdicts=verdicts,
            timeout=timeout,
        )
        # The workers hold what they need; one byte is the least that Tune can reserve.
        return tune.with_resources(team, {"cpu": 0, "memory": 1})

    def close(self) -> None:
        """Leave the cluster; a private Ray ends."""
        ray.shutdown()


def _connect(address: str | None) -> None:
    start = partial(
        ray.init, log_to_driver=False, configure_logging=False, logging_level=logging.ERROR
    )
    if address is not None:
        try:
            _knock(address)
            start(address=address)
        except (OSError, RuntimeError, ValueError) as error:
            problem = f"got {address!r}, no Ray cluster answers there ({error})"
            raise ConfigError("--address", [problem]) from None
        return
    with _within_this_machine():
        # "local": the default would attach to any Ray that happens to run on this machine.
        start(
            address="local",
            num_cpus=cores(),
            include_dashboard=False,
            _node_ip_address="127.0.0.1",
        )


def _knock(address: str) -> None:
    """Raise OSError where nobody listens; Ray itself would try for minutes."""
    where = urlsplit(address if "://" in address else f"//{address}")
    if where.hostname and where.port:
        socket.create_connection((where.hostname, where.port), timeout=_KNOCK).close()


@contextmanager
def _within_this_machine() -> Iterator[None]:
    """Ray listens on loopback only. By itself it replaces that address by an outer one, unless it
    takes this machine for one of those (macOS, Windows) that cannot be part of a cluster."""
    clusters = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = clusters


@contextmanager
def _low_on_memory_is_lost() -> Iterator[None]:
    """A worker that Ray ends because its node runs low on memory is lost like any other.

    Tune does not know the error that says so, and would end with it.
    """
    known = RayActorManager._actor_task_failed

    def failed(self: RayActorManager, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, OutOfMemoryError):
            exception = RayActorError(error_msg=str(exception))
        known(self, tracked_actor_task, exception)

    RayActorManager._actor_task_failed = failed  # type: ignore[method-assign]
    try:
        yield
    finally:
        RayActorManager._actor_task_failed = known  # type: ignore[method-assign]


def _check_resources(request: Resources, total: dict[str, float]) -> None:
    problems = [
        f"resources.{key}: got {asked:g} for one trial, the cluster has {total.get(name, 0):g}; "
        "if it grows on demand, say with search.max_concurrent how many may run at once"
        for key, name, asked in (
            ("cpu", "CPU", request.cpu * request.workers),
            ("gpu", "GPU", request.gpus * request.workers),
        )
        if asked > total.get(name, 0)
    ]
    if problems:
        raise ConfigError("resources", problems)


def _check_storage(folder: Path) -> None:
    """Every node must see what the driver writes where the sweep's folder is to be."""
    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    if len(nodes) == 1:
        return
    with ExitStack() as stack:
        with making_room_for(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            probe = stack.enter_context(
                tempfile.NamedTemporaryFile(dir=folder.parent, prefix=".seen-by-all-nodes.")
            )
        looks = [
            _sees.options(
                num_cpus=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
            ).remote(probe.name)
            for node in nodes
        ]
        blind = [
            f"{node['NodeName']} does not see {folder.parent}; `storage` names a folder that all do"
            for node, look in zip(nodes, looks, strict=True)
            if not _answer(look)
        ]
    if blind:
        raise ConfigError("storage", blind)


@ray.remote
def _sees(path: str) -> bool:
    return Path(path).is_file()


def _answer(look: Any) -> bool:
    """What a node saw; one that has gone meanwhile needs to see nothing."""
    try:
        return bool(ray.get(look))
    except (ray.exceptions.TaskUnschedulableError, ray.exceptions.NodeDiedError):
        return True


def _folder_name(trial: TuneTrial) -> str:
    return str(trial.trial_id)


def _held(config: dict[str, Any]) -> tune.PlacementGroupFactory:
    """What a trial holds while it runs: the driver says so with its task."""
    resources = config["task"]["config"]["resources"]
    held = {"CPU": resources["cpu"], "GPU": resources["gpu"]}
    return tune.PlacementGroupFactory([{name: amount for name, amount in held.items() if amount}])


def _train(config: dict[str, Any], raw: Any, timeout: float | None) -> None:
    """Runs in a worker; `raw` is the data, read from the node's object store."""
    task = Task(**config["task"])
    for message in watched(work(task, raw), task, timeout):
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

    def __init__(self, name: str, verdicts: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.name, self.verdicts = name, verdicts

    def on_trial_result(self, _: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        goes_on = _DRIVERS[self.name].heard(_task(trial), json.loads(result["message"]))
        if self.verdicts is not None:
            self.verdicts.tell.remote(trial.trial_id, result["number"], goes_on)
            return self.CONTINUE
        return self.CONTINUE if goes_on else self.STOP


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
        driver = _DRIVERS[self.name]
        times = driver.job.infrastructure_retries + 1
        driver.lost(_task(trial), f"its worker process died {times} times{silence(_task(trial))}")


def _task(trial: TuneTrial) -> Task:
    return Task(**trial.config["task"])
