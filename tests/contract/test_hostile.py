"""A sweep's folder from elsewhere cannot run code, whatever file of it is planted."""

import io
import pickle
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import robustfront as rf
from robustfront.cli import main
from robustfront.ledger import Event, Ledger
from tiny_job import state_of, write_job

pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.mark,)


def as_pickle(mark: Path) -> bytes:
    return pickle.dumps(Payload(mark))


def as_torch(mark: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save({"model": Payload(mark)}, buffer)
    return buffer.getvalue()


def as_npz(mark: Path) -> bytes:
    buffer = io.BytesIO()
    planted = np.array([Payload(mark)], dtype=object)
    np.savez(buffer, label=planted, plain=planted, allow_pickle=True)
    return buffer.getvalue()


def as_yaml(mark: Path) -> bytes:
    return f"!!python/object/apply:os.mknod ['{mark}']\n".encode()


PLANTED = [
    ("checkpoint/last.safetensors", as_pickle),
    ("checkpoint/last.safetensors", as_torch),
    ("checkpoint/best.safetensors", as_torch),
    ("checkpoint/state.safetensors", as_torch),
    ("checkpoint/config.json", as_pickle),
    ("config.json", as_yaml),
    ("records.npz", as_npz),
    ("records.npz", as_pickle),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        rf.run(write_job(folder), {"search.trials": 2}, executor="inline")
    return folder


@pytest.fixture
def copy(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(home / "sweeps", tmp_path / "sweeps")
    shutil.copy(home / "space.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "sweeps" / "tiny"


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[Path]:
    """The file that a payload makes: there must be none at the end."""
    yield tmp_path / "owned"
    assert not (tmp_path / "owned").exists(), "code from the folder ran"


def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> int:
    """A command's exit code; whatever is in the folder, it never ends in a traceback."""
    monkeypatch.setattr(sys, "argv", ["robustfront", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return int(ended.value.code or 0)


@pytest.mark.parametrize(("name", "content"), PLANTED)
def test_a_planted_file_of_a_trial_runs_nothing(
    copy: Path,
    mark: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: Callable[[Path], bytes],
) -> None:
    trials = [copy / "trials" / trial for trial in state_of(copy).trials]
    for trial in trials:
        (trial / name).write_bytes(content(mark))
        if name in ("checkpoint/last.safetensors", "checkpoint/config.json"):
            with pytest.raises((rf.DataError, rf.ConfigError), match=Path(name).name):
                rf.load_model(trial)
    if name == "records.npz":
        with pytest.raises(rf.DataError, match="records"):
            _ = rf.Sweep.open("tiny").records
        assert len(rf.Sweep.open("tiny").front_view().problems) == len(trials)
    assert cli(monkeypatch, capsys, "front", "tiny") == 0
    cli(monkeypatch, capsys, "status", "tiny")
    cli(monkeypatch, capsys, "resume", "tiny", "--set", "search.trials=3")
    assert cli(monkeypatch, capsys, "trial", "job.yaml", "--out", str(trials[0])) == 2


def test_a_planted_job_runs_nothing(
    copy: Path,
    mark: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (copy / "job.yaml").write_bytes(as_yaml(mark))
    assert cli(monkeypatch, capsys, "validate", str(copy / "job.yaml")) == 2
    assert cli(monkeypatch, capsys, "front", "tiny") == 0, "the ledger knows the job"


def unknown_kind(ledger: Ledger) -> None:
    ledger.append([Event("exploded", "a")])  # type: ignore[arg-type]


def unknown_trial(ledger: Ledger) -> None:
    ledger.append([Event("finished", "nobody")])


def missing_body(ledger: Ledger) -> None:
    ledger.append([Event("proposed", "a", body={"number": 9})])


def no_metrics(ledger: Ledger) -> None:
    trial = next(event.trial for event in ledger.read() if event.trial)
    ledger.append([Event("reported", trial, 0, 9, {"metrics": [1]})])


@pytest.mark.parametrize("plant", [unknown_kind, unknown_trial, missing_body, no_metrics])
@pytest.mark.parametrize("command", ["status", "front", "resume"])
def test_events_that_no_sweep_writes_are_refused(
    copy: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    plant: Callable[[Ledger], None],
    command: str,
) -> None:
    ledger = Ledger.open(copy)
    plant(ledger)
    ledger.close()
    assert cli(monkeypatch, capsys, command, "tiny") == 2
