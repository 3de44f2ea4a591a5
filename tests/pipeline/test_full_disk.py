"""A disk that is full for a while costs a sweep nothing but time."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from robustfront.ledger import Ledger
from tiny_job import call, errors_of, state_of, write_job


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 8 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a file system here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, left: int) -> Path:
    """Leave so many bytes."""
    ballast = folder / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(folder).free - left))
    return ballast


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["inline", "ray"])
def test_a_full_disk_stops_a_sweep_and_costs_no_trial_a_retry(
    tmp_path: Path, disk: Path, executor: str
) -> None:
    alone, full = tmp_path / "alone", disk / "sweeps"
    job = write_job(tmp_path, model={"type": "mlp", "hidden": [256]})
    store = ["--set", f"tracking.uri=sqlite:///{tmp_path / 'mlflow.db'}", "--executor"]
    there = ["inline", "--set", f"storage={alone}"]
    assert call(tmp_path, "run", str(job), *store, *there).returncode == 0
    full.mkdir()
    ballast = fill(disk, left=1_200_000)
    here = [executor, "--set", f"storage={full / 'tiny'}"]
    stopped = call(tmp_path, "run", str(job), *store, *here)
    told = " ".join((stopped.stdout + stopped.stderr).split())
    assert stopped.returncode == 1
    assert "Traceback" not in told and "full" in told and "robustfront resume" in told
    left = state_of(full / "tiny")
    assert not any(trial.status in ("failed", "crashed") for trial in left.trials.values())
    assert left.count("finished") < 4
    ballast.unlink()
    done = call(tmp_path, "resume", str(full / "tiny"))
    assert done.returncode == 0, done.stdout + done.stderr
    state = state_of(full / "tiny")
    assert errors_of(state) == errors_of(state_of(alone))
    assert state.cost.epochs == 4 * 3
    ledger = Ledger.open(full / "tiny")
    assert not [event for event in ledger.read() if event.kind in ("crashed", "failed")]
    assert ledger.acknowledged("mlflow") == ledger.read()[-1].seq
    ledger.close()
