"""Workers, drivers, all of a sweep's processes and the tracking server die at random moments."""

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlflow_server import Tracking, check_told_once
from processes import Start, descendants, held_open, kill, kill_all, listening, titled, wait_for
from tiny_job import errors_of, reports, run_alone, state_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

TRIALS, EPOCHS = 6, 8
JOB: dict[str, Any] = {
    "data": {"type": "digits", "train_size": 1000, "val_size": 100},
    "train": {"epochs": EPOCHS, "batch_size": 8, "optimizer": {"type": "sgd", "lr": 0.1}},
    "method": {"type": "trades", "inner": {"steps": 5}},
    "search_space": {"method.beta": {"log_uniform": [0.5, 12]}},
    "search": {"sampler": "random", "trials": TRIALS, "scheduler": None},
    "infrastructure_retries": 20,
}
WORKER = "ray::ImplicitFunc"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with run_alone(tmp_path_factory.mktemp("home"), JOB) as folder:
        yield folder


@pytest.mark.parametrize("seed", range(4))
def test_whatever_dies_nothing_is_lost_or_done_twice(
    tmp_path: Path, home: Path, start: Start, seed: int
) -> None:
    moments = random.Random(seed)
    strikes = ["worker", "driver", "everything", "server", moments.choice(["worker", "driver"])]
    moments.shuffle(strikes)
    name, struck = f"struck{seed}", []
    sweep = home / "sweeps" / name
    tracking = Tracking(tmp_path)
    try:
        settings = ("--set", f"name={name}", "--set", f"tracking.uri={tracking.uri}")
        process = start("run", "job.yaml", *settings)
        for strike in strikes:
            goal = reports(sweep) + moments.randint(1, 4)
            wait_for(process, lambda goal=goal: reports(sweep) >= goal)
            time.sleep(moments.uniform(0, 0.4))
            if process.poll() is not None:
                break
            struck.append(strike)
            if strike == "worker":
                kill(moments.choice(titled(process.pid, WORKER) or [process.pid]))
            elif strike == "server":
                tracking.kill()
                until = time.monotonic() + moments.uniform(0, 5)
                wait_for(process, lambda until=until: time.monotonic() > until)
                tracking.begin()  # meanwhile training goes on
            else:
                kill_all(process) if strike == "everything" else kill(process.pid)
            if strike != "server" and (strike != "worker" or process.poll() is not None):
                process.wait()
                process = start("resume", name)
        if process.wait(timeout=400) != 0:
            process = start("resume", name)
        assert process.wait(timeout=400) == 0, (home / "log.txt").read_text()

        state, alone = state_of(sweep), state_of(home / "sweeps" / "alone")
        assert len(struck) >= 3, struck
        assert errors_of(state) == errors_of(alone)
        assert {trial.status for trial in state.trials.values()} == {"finished"}
        epochs = list(range(1, EPOCHS + 1))
        assert all(sorted(trial.reports) == epochs for trial in state.trials.values())
        tracking.wait()
        check_told_once(tracking.uri, state)
    finally:
        tracking.kill()


def test_a_poisoned_configuration_takes_no_other_trial_along(home: Path, start: Start) -> None:
    alone = state_of(home / "sweeps" / "alone")
    victim = sorted(alone.trials)[1]
    settings = ("name=poisoned", "infrastructure_retries=2", "progress_timeout=300")
    process = start("run", "job.yaml", *(part for one in settings for part in ("--set", one)))
    # the worker that trains it is the one that keeps its watchdog's file open
    story = str(home / "sweeps" / "poisoned" / "trials" / victim / "silence-0.txt")
    deadline = time.monotonic() + 400
    while process.poll() is None:
        assert time.monotonic() < deadline, "it does not get on"
        for pid in titled(process.pid, WORKER):
            if story in held_open(pid):
                kill(pid)
        time.sleep(0.01)

    state = state_of(home / "sweeps" / "poisoned")
    poisoned = state.trials.pop(victim)
    assert poisoned.status == "failed" and "died 3 times" in poisoned.reason
    assert process.returncode == 1
    expected, measured = errors_of(alone), errors_of(state)
    # which of them are on the front, and so measured on the test split, depends on the victim
    for trial in state.trials.values():
        assert (trial.status, trial.starts) == ("finished", 1)
        found = measured[trial.id]
        assert found.items() >= {k: v for k, v in expected[trial.id].items() if k in found}.items()


def test_nothing_listens_beyond_loopback(home: Path, start: Start) -> None:
    loopback = {"127.0.0.1", "::1"}
    sweep = home / "sweeps" / "quiet"
    process = start("run", "job.yaml", "--set", "name=quiet", "--set", "search.trials=2")
    seen: set[str] = set()
    while process.poll() is None and reports(sweep) < 4:
        seen |= listening(pid for pid, _ in descendants(process.pid))
        time.sleep(0.2)
    assert "127.0.0.1" in seen and seen <= loopback
    assert process.wait(timeout=400) == 0

    page = start("ui")
    found: set[str] = set()
    deadline = time.monotonic() + 120
    while not found and time.monotonic() < deadline:
        time.sleep(0.5)
        found = listening(pid for pid, _ in descendants(page.pid))
    assert found and found <= loopback
