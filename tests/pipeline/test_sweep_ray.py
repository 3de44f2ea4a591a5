"""The same sweep on Ray: the same numbers, also when workers or the driver are killed."""

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import robustfront as rf
from processes import descendants, gone, title
from robustfront.ledger import SweepState
from tiny_job import call, command, environment, errors_of, reports, state_of, write_job

pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")

TRIALS, EPOCHS = 3, 6
LONG: dict[str, Any] = {
    "data": {"type": "digits", "train_size": 500, "val_size": 100},
    "train": {"epochs": EPOCHS, "batch_size": 8, "optimizer": {"type": "sgd", "lr": 0.1}},
    "method": {"type": "trades", "inner": {"steps": 5}},
    "search_space": {"method.beta": {"log_uniform": [0.5, 12]}},
    "search": {"sampler": "random", "trials": TRIALS, "scheduler": None},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder a user works in, where the sweep has run without Ray."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done = rf.run(write_job(folder, **LONG), {"name": "alone"}, executor="inline")
        assert done.problems == ()
        yield folder


Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start(home: Path) -> Iterator[Start]:
    """Starts commands in the background; what a failed test leaves of them is killed."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(*arguments: str) -> subprocess.Popen[bytes]:
        with (home / "log.txt").open("ab") as log:
            process = subprocess.Popen(
                command(*arguments), cwd=home, env=environment(), stdout=log, stderr=log
            )
        started.append(process)
        return process

    yield begin
    for process in started:
        family = descendants(process.pid) if process.poll() is None else set()
        for pid, _ in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def wait_until(process: subprocess.Popen[bytes], reached: Callable[[], object]) -> None:
    deadline = time.monotonic() + 600
    while not reached():
        assert process.poll() is None, "it has ended before"
        assert time.monotonic() < deadline, "it does not get on"
        time.sleep(0.02)


def check_same_as_alone(home: Path, name: str) -> SweepState:
    state, alone = state_of(home / "sweeps" / name), state_of(home / "sweeps" / "alone")
    assert errors_of(state) == errors_of(alone)
    assert {trial.status for trial in state.trials.values()} == {"finished"}
    assert all(set(t.reports) == set(range(1, EPOCHS + 1)) for t in state.trials.values())
    for trial in state.trials:
        weights = [
            home / "sweeps" / sweep / "trials" / trial / "checkpoint" / "last.safetensors"
            for sweep in (name, "alone")
        ]
        assert weights[0].read_bytes() == weights[1].read_bytes()
    return state


def test_a_killed_worker_costs_one_retry_and_changes_no_number(home: Path, start: Start) -> None:
    sweep = home / "sweeps" / "worker"
    process = start("run", "job.yaml", "--set", "name=worker")
    wait_until(process, lambda: reports(sweep) >= 2)
    family = descendants(process.pid)
    training = [pid for pid, _ in family if title(pid).startswith("ray::ImplicitFunc")]
    assert training, sorted(title(pid) for pid, _ in family)
    os.kill(training[0], signal.SIGKILL)
    family |= descendants(process.pid)
    assert process.wait(timeout=600) == 0, (home / "log.txt").read_text()
    state = check_same_as_alone(home, "worker")
    assert sorted(trial.starts for trial in state.trials.values()) == [1, 1, 2]
    assert gone(family) == set()
    assert not (sweep / ".tune").exists()


def test_a_killed_driver_goes_on_where_it_was(home: Path, start: Start) -> None:
    moments = random.Random(7)
    sweep = home / "sweeps" / "driver"
    process = start("run", "job.yaml", "--set", "name=driver")
    goal = moments.randint(3, 8)
    wait_until(process, lambda: reports(sweep) >= goal)
    time.sleep(moments.uniform(0, 0.2))
    family = descendants(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = {trial.id: trial.epoch for trial in state_of(sweep).trials.values()}
    assert sum(before.values()) < TRIALS * EPOCHS
    resumed = start("resume", "driver")
    wait_until(resumed, lambda: reports(sweep) > sum(before.values()))
    family |= descendants(resumed.pid)
    assert resumed.wait(timeout=600) == 0, (home / "log.txt").read_text()
    state = check_same_as_alone(home, "driver")
    assert max(trial.starts for trial in state.trials.values()) == 2
    assert gone(family) == set()
    assert not (sweep / ".tune").exists()


def test_more_than_the_cluster_has_is_refused_at_once(home: Path) -> None:
    before = set(home.rglob("*"))
    done = call(home, "run", "job.yaml", "--set", "name=big", "--set", "resources.cpu=4096")
    assert done.returncode == 2, done.stderr
    assert "resources.cpu: got 4096 for one trial, the cluster has" in done.stderr
    assert "Traceback" not in done.stderr
    assert set(home.rglob("*")) == before
