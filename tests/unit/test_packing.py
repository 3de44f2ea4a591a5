"""`gpu: auto`: the first trial of a shape measures its memory, the others get what they need."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from robustfront.config import Job
from robustfront.errors import ConfigError
from robustfront.executors.choose import concurrency
from robustfront.executors.driver import Driver
from robustfront.executors.task import Task
from robustfront.ledger import Event, Ledger
from robustfront.search.plan import check

GIB = 2.0**30
JOB: dict[str, Any] = {
    "name": "packed",
    "data": {"type": "digits", "train_size": 200, "val_size": 100},
    "model": {"type": "linear"},
    "threat": {"norm": "linf", "eps": "1/10"},
    "train": {"epochs": 2},
    "search_space": {"train.optimizer.lr": {"log_uniform": [0.01, 1]}},
    "search": {"sampler": "random", "trials": 6, "scheduler": None},
    "resources": {"gpu": "auto"},
}


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    made = Ledger.create(tmp_path)
    made.append([Event("created", body={"job": {}, "uid": "u", "version": "1"})])
    yield made
    made.close()


def driver_of(folder: Path, ledger: Ledger, **changes: Any) -> Driver:
    return Driver(folder, ledger, check({**JOB, **changes}, "job.yaml"))


def begun(driver: Driver) -> Task:
    task = driver.next()
    assert isinstance(task, Task)
    driver.started(task)
    return task


def share(task: Task) -> float:
    return float(task.config["resources"]["gpu"])


def report(driver: Driver, task: Task, gib: float, epoch: int = 1) -> None:
    """An epoch on a GPU of 80 GiB."""
    metrics = {
        "standard_error": 0.1,
        "robust_error": 0.2,
        "peak_memory_bytes": gib * GIB,
        "gpu_memory_bytes": 80 * GIB,
    }
    driver.heard(task, {"epoch": epoch, "metrics": metrics})


def test_the_first_measures_on_a_whole_gpu_and_the_rest_share(
    tmp_path: Path, ledger: Ledger
) -> None:
    driver = driver_of(tmp_path, ledger)
    first = begun(driver)
    assert share(first) == 1
    assert driver.next() == "wait", "nobody knows yet what a second one needs"
    report(driver, first, gib=10)  # with room for gaps and for CUDA itself 12.6 of 80
    second, third = begun(driver), begun(driver)
    assert share(second) == share(third) == 1 / 6
    report(driver, second, gib=20)
    assert share(begun(driver)) == 1 / 3, "the largest need of the shape counts"


def test_other_shapes_are_measured_by_themselves(tmp_path: Path, ledger: Ledger) -> None:
    space = {"model.hidden": {"choice": [[8], [512]]}}
    job = {"model": {"type": "mlp"}, "search_space": space, "search": {"sampler": "grid"}}
    driver = driver_of(tmp_path, ledger, **job)
    first, other = begun(driver), begun(driver)
    assert (share(first), share(other)) == (1, 1)


def test_what_was_measured_outlives_the_driver(tmp_path: Path, ledger: Ledger) -> None:
    driver = driver_of(tmp_path, ledger)
    report(driver, begun(driver), gib=10)
    again = driver_of(tmp_path, ledger)
    assert share(begun(again)) == 1 / 6


def test_a_crash_doubles_the_share(tmp_path: Path, ledger: Ledger) -> None:
    driver = driver_of(tmp_path, ledger, search={**JOB["search"], "trials": 2})
    report(driver, first := begun(driver), gib=10)
    task = begun(driver)
    driver.heard(task, {"end": "crashed", "reason": "OutOfMemory: ..."})
    again = begun(driver)
    assert (again.trial, share(again)) == (task.trial, 1 / 3)
    driver.heard(first, {"end": "crashed", "reason": "RuntimeError: ..."})
    assert share(begun(driver)) == 1 / 3


def test_a_crash_while_measuring_lets_another_one_measure(tmp_path: Path, ledger: Ledger) -> None:
    driver = driver_of(tmp_path, ledger)
    first = begun(driver)
    driver.heard(first, {"end": "failed", "reason": "DataError: ..."})
    assert share(begun(driver)) == 1


def test_as_many_run_at_once_as_there_are_cores_for(tmp_path: Path) -> None:
    job = Job.model_validate(JOB)
    assert concurrency(job, {"CPU": 8, "GPU": 1}) == 8
    assert concurrency(job, {"CPU": 8}) == 0
    team = Job.model_validate({**JOB, "resources": {"gpu": "auto", "workers": 2}})
    assert concurrency(team, {"CPU": 8, "GPU": 2}) == 1


@pytest.mark.parametrize("gpu", ["all", -1, 1.5, True])
def test_other_amounts_are_refused(gpu: Any) -> None:
    with pytest.raises(ConfigError, match=r"resources\.gpu"):
        check({**JOB, "resources": {"gpu": gpu}}, "job.yaml")
