"""The same sweep on Ray: the same numbers, also when workers or the driver are killed."""

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from processes import Start, descendants, gone, title, wait_until
from robustfront.ledger import SweepState
from tiny_job import call, errors_of, reports, run_alone, state_of

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
    with run_alone(tmp_path_factory.mktemp("home"), LONG) as folder:
        yield folder


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
