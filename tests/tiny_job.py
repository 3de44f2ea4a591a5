"""A sweep that takes seconds, and the command line as a process of its own."""

import os
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

import robustfront as rf
from robustfront.ledger import Ledger, SweepState

JOB: dict[str, Any] = {
    "name": "tiny",
    "data": {"type": "digits", "train_size": 200, "val_size": 100},
    "model": {"type": "mlp", "hidden": [16]},
    "threat": {"norm": "linf", "eps": "1/10"},
    "search_space": "space.yaml",
    "method": {"type": "trades", "inner": {"steps": 2}},
    "train": {"epochs": 3, "batch_size": 32, "optimizer": {"type": "sgd", "lr": 0.1}},
    "evaluate": {
        "attack": {"type": "pgd", "steps": 3},
        "final": {"type": "pgd", "steps": 5, "restarts": 2, "examples": 50},
    },
    "search": {"sampler": "random", "trials": 4, "scheduler": None},
}
SPACE: dict[str, Any] = {
    "method.type": {"choice": ["standard", "trades"]},
    "method.beta": {"log_uniform": [0.5, 12], "when": {"method.type": "trades"}},
    "train_threat.eps": {"uniform": [0.02, 0.2]},
    "train_threat.mix": {"simplex": ["linf", "l2"]},
}


def write_job(folder: Path, file: str = "job.yaml", **changes: Any) -> Path:
    """The job with some of its sections replaced, beside its search space."""
    (folder / "space.yaml").write_text(yaml.safe_dump(SPACE))
    path = folder / file
    path.write_text(yaml.safe_dump({**JOB, **changes}))
    return path


@contextmanager
def run_alone(folder: Path, job: dict[str, Any]) -> Iterator[Path]:
    """A folder to work in, where the sweep `alone` of a job has run undisturbed, without Ray."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        alone = rf.run(write_job(folder, **job), {"name": "alone"}, executor="inline")
        assert alone.problems == ()
        yield folder


def command(*arguments: str) -> list[str]:
    """The command line in the interpreter of the tests."""
    return [sys.executable, "-c", "from robustfront.cli import main; main()", *arguments]


def environment(**changes: str) -> dict[str, str]:
    """Without what would lead a sweep to another Ray, and wide enough for whole lines."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return {**kept, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **changes}


def call(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder to its end."""
    return subprocess.run(
        command(*arguments),
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def rows(database: Path, query: str) -> list[tuple[Any, ...]]:
    """What a query finds in an SQLite file; nothing where there is no such file or table yet."""
    try:
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
            return connection.execute(query).fetchall()
    except sqlite3.OperationalError:
        return []


def use_store(folder: Path, template: Path) -> None:
    """An MLflow store for the sweeps in a folder: making one anew takes MLflow ten seconds."""
    (folder / "sweeps").mkdir()
    (folder / "sweeps" / "mlflow.db").write_bytes(template.read_bytes())


def reports(sweep: Path) -> int:
    """Epochs that a sweep, which may be running, has committed."""
    found = rows(sweep / "ledger.db", "SELECT count(*) FROM events WHERE kind = 'reported'")
    return int(found[0][0]) if found else 0


def state_of(folder: Path) -> SweepState:
    """The state of a sweep, from its ledger."""
    ledger = Ledger.open(folder)
    state = SweepState.of(ledger.read())
    ledger.close()
    return state


def errors_of(state: SweepState) -> dict[str, dict[str, float]]:
    """The measured errors of each trial: what must not depend on how a sweep was run."""
    return {
        trial.id: {key: value for key, value in trial.metrics.items() if "error" in key}
        for trial in state.trials.values()
    }


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
