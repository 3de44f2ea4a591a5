"""Trials of two workers that train one model, through Ray Train inside Tune."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from processes import descendants, title
from robustfront.ledger import SweepState
from tiny_job import command, environment, reports, run_alone, state_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),
]

EPOCHS = 6
# Standard training, in which a last bit stays one: no signs of gradients.
JOB: dict[str, Any] = {
    "data": {"type": "digits", "train_size": 1200, "val_size": 200},
    "method": {"type": "standard"},
    "train": {"epochs": EPOCHS, "batch_size": 8, "optimizer": {"type": "sgd", "lr": 0.02}},
    "search_space": {"train.optimizer.lr": {"log_uniform": [0.01, 0.1]}},
    "search": {"sampler": "random", "trials": 2, "scheduler": None},
}
HALVED = {"type": "mo_asha", "grace_epochs": 1, "reduction_factor": 2}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with run_alone(tmp_path_factory.mktemp("home"), JOB) as folder:
        yield folder


def start(home: Path, name: str, *settings: str) -> subprocess.Popen[bytes]:
    sets = [f"name={name}", "resources.workers=2", *settings]
    arguments = command("run", "job.yaml", *(part for one in sets for part in ("--set", one)))
    with (home / f"{name}.txt").open("wb") as log:
        return subprocess.Popen(arguments, cwd=home, env=environment(), stdout=log, stderr=log)


def check_same_as_alone(home: Path, name: str) -> SweepState:
    state, alone = state_of(home / "sweeps" / name), state_of(home / "sweeps" / "alone")
    assert state.trials.keys() == alone.trials.keys()
    for trial in alone.trials.values():
        mine = state.trials[trial.id]
        assert mine.status == "finished" and list(mine.reports) == list(range(1, EPOCHS + 1))
        for epoch, report in trial.reports.items():
            for error in ("standard_error", "robust_error"):
                assert mine.reports[epoch][error] == pytest.approx(report[error], abs=1e-4)
        for key, value in trial.test.items():
            assert mine.test[key] == pytest.approx(value, abs=1e-4)
    return state


def workers_of(driver: int) -> list[int]:
    """The processes that train, among all that a driver started."""
    return [pid for pid, _ in descendants(driver) if "RayTrainWorker" in title(pid)]


def test_two_workers_train_what_one_trains(home: Path) -> None:
    process = start(home, "two")
    assert process.wait(timeout=600) == 0, (home / "two.txt").read_text()
    check_same_as_alone(home, "two")


def test_a_killed_worker_goes_on_from_the_last_epoch(home: Path) -> None:
    process = start(home, "struck")
    deadline = time.monotonic() + 300
    while reports(home / "sweeps" / "struck") < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    struck = workers_of(process.pid)
    assert len(struck) == 2
    os.kill(struck[-1], signal.SIGKILL)
    assert process.wait(timeout=600) == 0, (home / "struck.txt").read_text()
    check_same_as_alone(home, "struck")


def test_a_stopped_trial_gives_its_workers_back(home: Path) -> None:
    # The second can be no match for the first, and the third needs its workers.
    (home / "rates.yaml").write_text("train.optimizer.lr: {choice: [0.03, 1.0e-6, 0.02]}\n")
    search = {"sampler": "grid", "trials": 3, "scheduler": HALVED}
    settings = [f"search_space={home / 'rates.yaml'}", f"search={json.dumps(search)}"]
    process = start(home, "halved", *settings)
    assert process.wait(timeout=900) == 0, (home / "halved.txt").read_text()
    state = state_of(home / "sweeps" / "halved")
    first, second, third = (trial.status for trial in state.trials.values())
    assert (first, second) == ("finished", "pruned") and third in ("finished", "pruned")
