"""Every command on good and on bad input: exit codes, messages, and what it leaves behind."""

import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import robustfront as rf
from robustfront.cli import app, main
from robustfront.evaluation.records import Records, read_arrays
from robustfront.ledger import Event, Ledger
from tiny_job import command, environment, state_of, write_job

pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")

COMMANDS = (
    "certify",
    "evaluate",
    "export",
    "front",
    "resume",
    "run",
    "status",
    "submit",
    "trial",
    "ui",
    "validate",
    "verdicts",
)
Call = Callable[..., "Done"]


class Done:
    """How a command ended in this process."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err
        self.text = " ".join((out + err).split())


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """The command line without a new process, through its own entry point."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def run(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["robustfront", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return Done(int(ended.value.code or 0), out, err)

    return run


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with one finished sweep; tests that write take a copy."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        rf.run(write_job(folder), executor="inline")
    return folder


@pytest.fixture
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder itself; it must be left as it was."""
    monkeypatch.chdir(home)
    before = listing(home)
    yield home
    assert listing(home) == before


@pytest.fixture
def copy(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "copy"
    shutil.copytree(home, folder)
    monkeypatch.chdir(folder)
    return folder


def listing(folder: Path) -> dict[Path, int]:
    """Every file and its size; SQLite's own helpers come and go."""
    return {
        path: path.stat().st_size if path.is_file() else -1
        for path in folder.rglob("*")
        if not path.name.endswith(("-wal", "-shm"))
    }


# -- help, and what is imported for it


def test_the_commands_are_those_that_are_tested_here() -> None:
    found = {command.callback.__name__ for command in app.registered_commands if command.callback}
    assert set(COMMANDS) <= found
    assert found <= {*COMMANDS}, "test the new command here"


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_says_what_a_command_does(cli: Call, name: str) -> None:
    done = cli(*([name] if name else []), "--help")
    assert done.code == 0
    assert "Usage: robustfront" in done.out
    assert len(done.text) > 200


IMPORTS = """
import sys
{code}
heavy = {{"torch", "torchvision", "ray", "mlflow", "optuna", "pandas", "sklearn", "scipy"}}
print(sorted(heavy & set(sys.modules)))
"""


@pytest.mark.parametrize(
    "code",
    [
        "import robustfront",
        "from robustfront.cli import app\nfrom typer.testing import CliRunner\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0",
        "from robustfront.cli import app\nfrom typer.testing import CliRunner\n"
        "assert CliRunner().invoke(app, ['run', '--help']).exit_code == 0",
    ],
    ids=["import", "help", "run help"],
)
def test_nothing_heavy_is_imported_before_it_is_needed(code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS.format(code=code)],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


# -- run


def test_run_says_what_it_found_and_where_to_look(
    cli: Call, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = cli("run", "job.yaml", "--set", "name=second", "--executor", "inline")
    assert done.code == 0
    assert re.search(r"\d of 4 finished trials are on the front, hypervolume 0\.\d{4}", done.text)
    assert "[4/4]" in done.text
    assert str(copy / "sweeps" / "second") in done.text
    assert f"sqlite:///{copy / 'sweeps' / 'mlflow.db'} (robustfront ui)" in done.text
    assert len(state_of(copy / "sweeps" / "second").trials) == 4


BAD_RUNS = {
    "no such file": (["jub.yaml"], "did you mean 'job.yaml'"),
    "a folder": (["."], "cannot be read"),
    "unknown key": (["job.yaml", "--set", "train.epoch=3"], "did you mean 'epochs'"),
    "not key=value": (["job.yaml", "--set", "train.epochs"], "write key=value"),
    "name taken": (["job.yaml"], "robustfront resume tiny"),
    "no GPU": (["job.yaml", "--set", "name=b", "--set", "resources.gpu=1"], "resources.gpu"),
    "too many cores": (
        ["job.yaml", "--set", "name=b", "--set", "resources.cpu=4096"],
        "resources.cpu: 1 problem got 4096, this machine has",
    ),
    "four GPUs": (["job.yaml", "--set", "name=b", "--set", "resources.gpu=4"], "resources.gpu"),
    "too many examples": (
        ["job.yaml", "--set", "name=many", "--set", "data.train_size=1500"],
        "data.train_size: 1500 asked for",
    ),
    "no place for the sweep": (
        ["job.yaml", "--set", "storage=/dev/null/x"],
        "storage: 1 problem /dev/null/x cannot be made a folder: ",
    ),
    "another place that cannot be": (
        ["job.yaml", "--set", "storage=/proc/zz/x"],
        "/proc/zz/x cannot be made a folder: ",
    ),
    "a place with too long a name": (
        ["job.yaml", "--set", f"storage=sweeps/{'x' * 300}"],
        "cannot be made a folder: File name too long",
    ),
    "unknown executor": (["job.yaml", "--executor", "slurm"], "slurm"),
    "unknown option": (["job.yaml", "--sett", "a=b"], "--sett"),
    "no file": ([], "JOB.yaml"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD_RUNS.values(), ids=BAD_RUNS)
def test_run_refuses_what_is_wrong_and_writes_nothing(
    cli: Call, here: Path, arguments: list[str], message: str
) -> None:
    if "--executor" not in arguments:
        arguments = [*arguments, "--executor", "inline"]
    done = cli("run", *arguments)
    assert done.code == 2
    assert message in done.text
    assert done.err


def test_run_without_its_data_names_the_folder_and_writes_nothing(
    cli: Call, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise OSError("no network here")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    root = tmp_path / "nothing" / "data"
    data = ["--set", f"data={{type: mnist, root: {root}}}", "--set", "name=no-data"]
    done = cli("run", "job.yaml", *data, "--executor", "inline")
    assert done.code == 2
    assert str(root) in done.text
    assert "cannot be downloaded" in done.text
    assert listing(tmp_path) == {}


def test_a_tracking_store_that_does_not_answer_is_told_at_the_end(cli: Call, copy: Path) -> None:
    (copy / "file").touch()
    uri = f"tracking.uri=sqlite:///{copy}/file/mlflow.db"
    done = cli("run", "job.yaml", "--set", "name=c", "--set", uri, "--executor", "inline")
    assert done.code == 1
    assert "`robustfront resume c` sends them" in done.text
    assert f"sqlite:///{copy}/file/mlflow.db" in done.text
    assert "(robustfront ui)" not in done.text
    assert "finished trials are on the front" in done.text


# -- resume


def test_resume_of_a_finished_sweep_shows_it_again(cli: Call, copy: Path) -> None:
    before = state_of(copy / "sweeps" / "tiny")
    done = cli("resume", "tiny")
    assert done.code == 0
    assert "finished trials are on the front" in done.text
    assert state_of(copy / "sweeps" / "tiny") == before


def test_resume_extends_a_sweep(cli: Call, copy: Path) -> None:
    done = cli("resume", "tiny", "--set", "search.trials=5")
    assert done.code == 0
    assert "[5/5]" in done.text
    assert state_of(copy / "sweeps" / "tiny").job["search"]["trials"] == 5


BAD_RESUMES = {
    "unknown sweep": (["tiiny"], "did you mean 'tiny'"),
    "another key": (["tiny", "--set", "train.epochs=9"], "train.epochs: cannot change in a sweep"),
    "a key that is like one": (["tiny", "--set", "search.trial=9"], "did you mean 'search.trials'"),
    "fewer trials": (["tiny", "--set", "search.trials=2"], "more trials already"),
    "a wrong value": (["tiny", "--set", "search.trials=many"], "search.trials"),
    "unknown choice": (["tiny", "--failed", "again"], "again"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD_RESUMES.values(), ids=BAD_RESUMES)
def test_resume_refuses_what_is_wrong_and_changes_nothing(
    cli: Call, here: Path, arguments: list[str], message: str
) -> None:
    before = state_of(here / "sweeps" / "tiny")
    done = cli("resume", *arguments)
    assert done.code == 2
    assert message in done.text
    assert state_of(here / "sweeps" / "tiny") == before


@pytest.mark.parametrize("settings", [[], ["--set", "search.trials=9"]])
def test_a_second_driver_is_refused_and_changes_nothing(
    cli: Call, copy: Path, settings: list[str]
) -> None:
    before = state_of(copy / "sweeps" / "tiny")
    with (copy / "sweeps" / "tiny" / "driver.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = cli("resume", "tiny", *settings)
    assert done.code == 2
    assert "running in another process" in done.text
    assert state_of(copy / "sweeps" / "tiny") == before


def interrupted(cli: Call, copy: Path) -> tuple[Path, list[str]]:
    """A sweep whose first two trials stopped after their last report, before their end."""
    source, folder = copy / "sweeps" / "tiny", copy / "sweeps" / "broken"
    old = Ledger.open(source)
    events = old.read()
    old.close()
    trials = [event.trial for event in events if event.kind == "proposed"]
    ends = {("finished", trial) for trial in trials[:2]}
    kept = [e for e in events if (e.kind, e.trial) not in ends and e.kind != "measured"]
    new = Ledger.create(folder)
    for event in kept:
        body = {**event.body, "uid": "another"} if event.kind == "created" else event.body
        new.append([Event(event.kind, event.trial, event.attempt, event.step, body)])
    new.close()
    for trial in trials:
        shutil.copytree(source / "trials" / trial, folder / "trials" / trial)
    for trial in trials[:2]:
        config = folder / "trials" / trial / "config.json"
        assert cli("trial", str(config), "--out", str(copy / "out" / trial)).code == 0
        state = copy / "out" / trial / "checkpoint" / "state.safetensors"
        shutil.copy(state, folder / "trials" / trial / "checkpoint")
    return folder, trials


def test_a_truncated_checkpoint_fails_its_trial_only_and_a_restart_mends_it(
    cli: Call, copy: Path
) -> None:
    folder, trials = interrupted(cli, copy)
    checkpoint = folder / "trials" / trials[0] / "checkpoint" / "state.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1000])
    done = cli("resume", "broken")
    assert done.code == 1
    assert f"{trials[0]} failed: {checkpoint}: not a complete checkpoint" in done.text
    assert "robustfront resume broken" in done.text
    state = state_of(folder)
    assert [state.trials[t].status for t in trials] == ["failed"] + ["finished"] * 3
    done = cli("resume", "broken", "--failed", "skip")
    assert done.code == 1
    assert state_of(folder).trials[trials[0]].starts == state.trials[trials[0]].starts
    done = cli("resume", "broken", "--failed", "restart")
    assert done.code == 0
    mended, good = state_of(folder), state_of(copy / "sweeps" / "tiny")
    for trial in trials:
        for key in ("standard_error", "robust_error"):
            assert mended.trials[trial].metrics[key] == good.trials[trial].metrics[key]


# -- a ledger that is damaged


@pytest.mark.parametrize("how", ["text", "empty", "truncated", "overwritten"])
@pytest.mark.parametrize("command", ["resume", "status", "front"])
def test_a_damaged_ledger_is_the_user_s_to_know(
    cli: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, how: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "sweeps" / "tiny"
    ledger = Ledger.create(folder)
    events = [Event("reported", "a", 0, step, {"metrics": {}}) for step in range(1000)]
    ledger.append(events)
    ledger.close()
    content = (folder / "ledger.db").read_bytes()
    half = len(content) // 2
    damaged = {
        "text": b"this is no ledger\n" * 99,
        "empty": b"",
        "truncated": content[:half],
        "overwritten": content[:4096] + b"\xff" * (half - 4096) + content[half:],
    }
    (folder / "ledger.db").write_bytes(damaged[how])
    done = cli(command, "tiny")
    assert done.code == 2
    assert "ledger.db" in done.text


# -- status


def test_status_of_one_sweep_and_of_all(cli: Call, here: Path) -> None:
    every = cli("status")
    assert every.code == 0
    assert re.search(r"tiny +4/4", every.out)
    one = cli("status", "tiny")
    assert one.code == 0
    assert all(trial in one.out for trial in state_of(here / "sweeps" / "tiny").trials)


def test_status_where_there_is_nothing(
    cli: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = cli("status")
    assert done.code == 0
    assert "no sweeps here" in done.out
    for name in ("nothing", "x" * 300):
        done = cli("status", name)
        assert done.code == 2
        assert f"no sweep '{name}' here" in done.err
    assert listing(tmp_path) == {}


def test_a_reason_is_shown_as_it_is_whatever_brackets_it_has(cli: Call, copy: Path) -> None:
    ledger = Ledger.open(copy / "sweeps" / "tiny")
    body = next(event.body for event in ledger.read() if event.kind == "proposed")
    reason = "cannot read [/data/a.npz] or [red]b[/red]"
    ledger.append([Event("proposed", "broken", body={**body, "number": 9})])
    ledger.append([Event("failed", "broken", 0, 1, {"reason": reason})])
    ledger.close()
    done = cli("status", "tiny")
    assert done.code == 0
    assert reason in done.text


# -- front


def test_front_prints_and_writes_the_same_front(cli: Call, copy: Path) -> None:
    done = cli("front", "tiny", "--csv", "f.csv", "--png", "f.png", "--html", "f.html")
    assert done.code == 0
    members = set(rf.Sweep.open("tiny").front()["trial"])
    table = pd.read_csv(copy / "f.csv")
    assert set(table.loc[table["pareto"], "trial"]) == members
    assert len(table) == 4
    assert all(trial in done.out for trial in members)
    page = (copy / "f.html").read_text()
    assert all(trial in page for trial in table["trial"])
    assert (copy / "f.png").read_bytes().startswith(b"\x89PNG")
    plain = copy / "plain.txt"
    plain.touch()
    assert (copy / "f.csv").stat().st_mode == plain.stat().st_mode, "others may not read it"


ROBUST = "test/robust_error/linf_0.1/pgd5x2"


def test_front_of_the_test_split_and_of_other_metrics(cli: Call, here: Path) -> None:
    done = cli("front", "tiny", "--split", "test")
    assert done.code == 0
    assert "pgd5x2, test split" in done.text
    assert [line.split() for line in done.out.splitlines() if "pgd5x2" in line][1] == [
        "trial",
        "standard",
        "error",
        "pgd5x2",
    ]
    done = cli("front", "tiny", "--x", "train/loss", "--y", "standard_error")
    assert done.code == 0
    assert {"train", "loss"} <= set(done.text.split())


@pytest.mark.parametrize(
    ("axes", "caption"),
    [
        ([], "digits, linf 0.1, pgd3, val split"),
        (["--y", ROBUST], "digits, linf 0.1, pgd5x2, val and test split"),
        (["--x", "test/standard_error", "--y", ROBUST], "digits, linf 0.1, pgd5x2, test split"),
        (["--x", "forward_equivalents"], "digits, linf 0.1, pgd3, val split"),
    ],
)
def test_a_front_is_captioned_by_what_it_shows(
    cli: Call, here: Path, axes: list[str], caption: str
) -> None:
    done = cli("front", "tiny", *axes)
    assert done.code == 0
    assert done.text.startswith(f"tiny: {caption}; errors in %")


BAD_FRONTS = {
    "unknown sweep": (["tiiny"], "did you mean 'tiny'"),
    "unknown split": (["tiny", "--split", "tst"], "did you mean 'test'"),
    "unknown metric": (["tiny", "--x", "robust_eror"], "did you mean 'robust_error'"),
    "no such folder": (["tiny", "--csv", "no/f.csv"], "no/f.csv: its folder does not exist"),
    "a folder for a file": (["tiny", "--csv", "sweeps"], "sweeps"),
    "no place for a file": (["tiny", "--csv", "/proc/x.csv"], "/proc/x.csv: cannot be written"),
    "too long a name": (["tiny", "--png", "x" * 300], "cannot be written: File name too long"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD_FRONTS.values(), ids=BAD_FRONTS)
def test_front_refuses_what_is_wrong_and_writes_nothing(
    cli: Call, here: Path, arguments: list[str], message: str
) -> None:
    done = cli("front", *arguments)
    assert done.code == 2
    assert message in done.text


# -- evaluate

APGD = "test/robust_error/linf_0.1/apgd100"


def test_evaluate_measures_the_front_with_a_stronger_suite(cli: Call, copy: Path) -> None:
    before = rf.Sweep.open("tiny")
    done = cli("evaluate", "tiny", "--suite", "apgd")
    assert done.code == 0
    after = rf.Sweep.open("tiny")
    members = list(before.front()["trial"])
    for trial in after.state.trials.values():
        known = before.state.trials[trial.id].metrics
        assert known.items() <= trial.metrics.items()  # both numbers are kept
        assert (APGD in trial.metrics) == (trial.id in members)
    for member in members:
        assert member in done.text
        test = after.state.trials[member].test
        assert test["test/standard_error"] <= test[APGD]
        records = Records.load(copy / "sweeps" / "tiny" / "trials" / member / "test-apgd100.npz")
        assert records.errors("test")[APGD] == test[APGD]
        assert f"{100 * test[APGD]:.1f} [" in done.text
    again = cli("evaluate", "tiny", "--suite", "apgd")
    assert again.code == 0
    assert rf.Sweep.open("tiny").state.seq == after.state.seq  # nothing new to tell
    shown = cli("front", "tiny", "--split", "test", "--y", APGD)
    assert shown.code == 0 and members[0] in shown.text


def test_evaluate_measures_one_trial_with_the_suite_of_the_job(cli: Call, copy: Path) -> None:
    sweep = rf.Sweep.open("tiny")
    (other, *_) = set(sweep.trials["trial"]) - set(sweep.front()["trial"])
    done = cli("evaluate", "tiny", "--trial", other[:8])
    assert done.code == 0 and other in done.text
    test = rf.Sweep.open("tiny").state.trials[other].test
    assert {name for name in test if "transfer" not in name} == {
        "test/standard_error",
        "test/robust_error/linf_0.1/pgd5x2",
        "test/examples",
    }
    assert list(rf.Sweep.open("tiny").front()["trial"]) == list(sweep.front()["trial"])


BAD_EVALUATIONS = {
    "a sweep that is not there": (["tinny"], "did you mean 'tiny'"),
    "a suite that is not there": (["tiny", "--suite", "autoatack"], "did you mean 'autoattack'"),
    "a trial that is not there": (["tiny", "--trial", "nobody"], "no finished trial begins so"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD_EVALUATIONS.values(), ids=[*BAD_EVALUATIONS])
def test_evaluate_refuses_what_is_wrong_and_writes_nothing(
    cli: Call, here: Path, arguments: list[str], message: str
) -> None:
    done = cli("evaluate", *arguments)
    assert done.code == 2
    assert message in done.text


def test_evaluate_names_a_checkpoint_of_another_architecture(cli: Call, copy: Path) -> None:
    member = rf.Sweep.open("tiny").front()["trial"].iloc[0]
    checkpoint = copy / "sweeps" / "tiny" / "trials" / member / "checkpoint"
    config = json.loads((checkpoint / "config.json").read_text())
    config["model"]["hidden"] = [17]
    (checkpoint / "config.json").write_text(json.dumps(config))
    done = cli("evaluate", "tiny", "--suite", "fgsm")
    assert done.code == 1
    assert member in done.text and "another architecture" in done.text


PROVED = "test/certified_error/linf_0.1/ibp"


def test_certify_proves_what_it_can_of_the_front(cli: Call, copy: Path) -> None:
    before = rf.Sweep.open("tiny")
    done = cli("certify", "tiny", "--certifier", "ibp")
    assert done.code == 0, done.text
    after = rf.Sweep.open("tiny")
    members = list(before.front()["trial"])
    for trial in after.state.trials.values():
        known = before.state.trials[trial.id].metrics
        assert known.items() <= trial.metrics.items()
        assert (PROVED in trial.metrics) == (trial.id in members)
        assert trial.suspect == before.state.trials[trial.id].suspect
    for member in members:
        test = after.state.trials[member].test
        assert test["test/robust_error/linf_0.1/pgd5x2"] <= test[PROVED] <= 1
        assert f"{100 * test[PROVED]:.1f} [" in done.text
        folder = copy / "sweeps" / "tiny" / "trials" / member
        found = Records.load(folder / "test-certified.npz").certified["linf_0.1/ibp"]
        assert set(found.tolist()) <= {0, 1}
    again = cli("certify", "tiny", "--certifier", "ibp")
    assert again.code == 0
    assert rf.Sweep.open("tiny").state.seq == after.state.seq  # nothing new to tell


@pytest.mark.filterwarnings("ignore")
def test_certify_takes_the_cascade_unless_told_otherwise(cli: Call, copy: Path) -> None:
    member = rf.Sweep.open("tiny").front()["trial"].iloc[0]
    assert cli("certify", "tiny", "--trial", member, "--certifier", "ibp").code == 0
    done = cli("certify", "tiny", "--trial", member)
    assert done.code == 0, done.text
    test = rf.Sweep.open("tiny").state.trials[member].test
    assert test["test/certified_error/linf_0.1/ibp-crown_ibp-crown"] <= test[PROVED]


def test_what_is_undecided_goes_to_another_verifier_and_comes_back(
    cli: Call, copy: Path, tmp_path: Path
) -> None:
    member = rf.Sweep.open("tiny").front()["trial"].iloc[0]
    assert cli("certify", "tiny", "--trial", member, "--certifier", "ibp").code == 0
    before = rf.Sweep.open("tiny").state.trials[member].test
    done = cli("export", "tiny", "--trial", member, "--out", str(tmp_path / "out"))
    assert done.code == 0, done.text
    listed = (tmp_path / "out" / "instances.csv").read_text().splitlines()
    undecided = round(50 * (before[PROVED] - before["test/robust_error/linf_0.1/pgd5x2"]))
    assert len(listed) == undecided > 1
    names = [line.split(",")[1] for line in listed]
    assert all((tmp_path / "out" / name).is_file() for name in names)
    assert (tmp_path / "out" / "model.onnx").stat().st_size > 0
    results = tmp_path / "results.csv"
    results.write_text(f"model.onnx,{names[0]},unsat,1.0\nmodel.onnx,{names[1]},timeout,9\n")
    options = ["--trial", member, "--verifier", "other"]
    done = cli("verdicts", "tiny", str(results), *options)
    assert done.code == 0, done.text
    after = rf.Sweep.open("tiny").state.trials[member].test
    assert after[f"{PROVED}-other"] == pytest.approx(before[PROVED] - 1 / 50)
    assert after["test/verdicts/proved"] == after["test/verdicts/open"] == 1
    assert f"{100 * after[f'{PROVED}-other']:.1f} [" in done.text
    again = cli("export", "tiny", "--trial", member, "--out", str(tmp_path / "again"))
    assert f"{undecided - 1} undecided" in again.text
    taken = cli("export", "tiny", "--trial", member, "--out", str(tmp_path / "again"))
    assert taken.code == 2 and "again exists" in taken.text
    taken = cli("export", "tiny", "--trial", member, "--out", "/dev/null/x")
    assert taken.code == 2 and "/dev/null/x cannot be written: Not a directory" in taken.text
    results.write_text("model.onnx,linf_0.1/50.vnnlib,unsat,1.0\n")
    wrong = cli("verdicts", "tiny", str(results), *options)
    assert wrong.code == 2 and "has example 50, there are 50" in wrong.text
    wrong = cli("verdicts", "tiny", str(results), *options, "--threat", "linf_0.2")
    assert wrong.code == 2 and "did you mean 'linf_0.1'" in wrong.text


BAD_CERTIFICATES = {
    "a sweep that is not there": (["tinny"], "did you mean 'tiny'"),
    "a certifier that is not there": (["tiny", "--certifier", "corwn"], "did you mean 'crown'"),
    "a trial that is not there": (["tiny", "--trial", "nobody"], "no finished trial begins so"),
    "smoothing without noise": (
        ["tiny", "--certifier", "smoothing"],
        "final.certify.sigma: is missing, and smoothing.sigma is 0",
    ),
}


@pytest.mark.parametrize(
    ("arguments", "message"), BAD_CERTIFICATES.values(), ids=[*BAD_CERTIFICATES]
)
def test_certify_refuses_what_is_wrong_and_writes_nothing(
    cli: Call, here: Path, arguments: list[str], message: str
) -> None:
    done = cli("certify", *arguments)
    assert done.code == 2
    assert message in done.text


def test_a_proof_that_an_attack_contradicts_stops_the_command(
    cli: Call, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from robustfront.certifiers import propagation

    monkeypatch.setattr(propagation.Box, "reach", lambda self, layer: layer(self.radius) * 0)
    front = rf.Sweep.open("tiny").front()
    monkeypatch.setattr(
        "robustfront.evaluation.certify._begun",
        lambda records, name, threat: np.full(len(records), -1, np.int8),
    )
    done = cli("certify", "tiny", "--certifier", "ibp", "--trial", front["trial"].iloc[-1])
    assert done.code == 1
    assert "certified examples are contradicted by linf_0.1/pgd5x2" in done.text


def test_an_evaluation_that_is_killed_goes_on_with_the_same_result(cli: Call, copy: Path) -> None:
    member = rf.Sweep.open("tiny").front()["trial"].iloc[0]
    folder = copy / "sweeps" / "tiny" / "trials" / member
    arguments = ("evaluate", "tiny", "--trial", member, "--suite", "autoattack")
    process = subprocess.Popen(
        command(*arguments), cwd=copy, env=environment(), start_new_session=True
    )
    path = folder / "test-autoattack.npz"
    deadline = time.monotonic() + 120
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it had ended before the kill"
    assert "test/robust_error/linf_0.1/autoattack" not in rf.Sweep.open("tiny").trials
    assert read_arrays(path)["passed:linf_0.1/autoattack"].max() < 4

    assert cli(*arguments).code == 0

    known = Records.load(path)
    path.unlink()
    assert cli(*arguments).code == 0
    alone = Records.load(path)
    for name, prediction in alone.attacked.items():
        assert np.array_equal(known.attacked[name], prediction)


# -- validate


def test_validate_tells_of_data_that_cannot_be_read(cli: Call, here: Path) -> None:
    for path, message in (("no.npz", "no.npz: no such file"), (".", "cannot be read")):
        done = cli("validate", "job.yaml", "--set", f"data={{type: arrays, path: {path}}}")
        assert done.code == 2
        assert message in done.text


def test_validate_prints_the_plan_and_writes_nothing(cli: Call, here: Path) -> None:
    done = cli("validate", "job.yaml", "--set", "search.trials=7")
    assert done.code == 0
    for text in ("7 (random", "3 each", "standard_error, robust_error", "method.beta", "pgd5x2"):
        assert text in done.text


TOO_SMALL = "{data.train_size: {choice: [100, 100000]}, model.type: {choice: [mlp, small_cnn]}}"


@pytest.mark.parametrize("command", [["validate"], ["run", "--executor", "inline"]])
def test_choices_that_no_trial_could_train_with_are_told_beforehand(
    cli: Call, here: Path, command: list[str]
) -> None:
    name, *options = command
    changes = ["name=b", f"search_space={TOO_SMALL}"]
    done = cli(name, "job.yaml", *options, *(word for one in changes for word in ("--set", one)))
    assert done.code == 2
    assert "2 problems" in done.text
    assert "data.train_size: 100000 asked for" in done.text
    assert "small_cnn needs images of" in done.text


def test_validate_reports_every_problem(cli: Call, here: Path) -> None:
    done = cli("validate", "job.yaml", "--set", "train.epoch=3", "--set", "threat.eps=3")
    assert done.code == 2
    assert "train.epoch: unknown key" in done.err
    assert "did you mean 3/255" in done.err
    done = cli("validate", "job.yaml", "--set", "data.train_size=1500")
    assert done.code == 2
    assert "data.train_size: 1500 asked for" in done.err


def test_validate_tells_of_too_few_cores_as_of_a_gpu_that_is_not_here(
    cli: Call, here: Path
) -> None:
    done = cli("validate", "job.yaml", "--set", "resources={cpu: 2048, workers: 2}")
    assert done.code == 0
    assert "forward passes (resources.cpu: a trial takes 4096 cores, this machine has" in done.text
    assert "at once" not in done.text


def test_validate_estimates_from_sweeps_of_the_same_model_and_data(cli: Call, copy: Path) -> None:
    assert "by a step timed here" in cli("validate", "job.yaml", "--set", "model.hidden=[7]").text
    done = cli("validate", "job.yaml", "--set", "search.trials=100")
    assert "by the 12 epochs of tiny" in done.text
    state = rf.Sweep.open("tiny").state
    passes = state.cost.forward_equivalents
    assert passes > 0
    assert f"{passes:.1e}" in cli("status").text


# -- trial


def test_trial_trains_one_configuration_and_goes_on(cli: Call, copy: Path) -> None:
    done = cli("trial", "job.yaml", "--set", "method.beta=2", "--out", "one")
    assert done.code == 0
    assert "epoch 3/3" in done.out
    config = json.loads((copy / "one" / "config.json").read_text())
    assert config["method"]["beta"] == 2.0
    lines = [json.loads(line) for line in (copy / "one" / "report.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert {"standard_error", "val/robust_error/linf_0.1/pgd3"} <= set(lines[0])
    model = rf.load_model(copy / "one")
    x, y = rf.load_data(config["data"], split="val")
    assert float((model(x).argmax(1) != y).float().mean()) == pytest.approx(
        lines[-1]["standard_error"]
    )
    weights = (copy / "one" / "checkpoint" / "last.safetensors").read_bytes()
    again = cli("trial", str(copy / "one" / "config.json"), "--out", "one")
    assert again.code == 0
    assert (copy / "one" / "checkpoint" / "last.safetensors").read_bytes() == weights
    default = cli("trial", "job.yaml", "--set", "train.epochs=1")
    assert default.code == 0
    (folder,) = (copy / "sweeps").glob("trial-*")
    assert str(folder.relative_to(copy)) in default.text


def test_trial_refuses_what_is_wrong(cli: Call, here: Path) -> None:
    done = cli("trial", "job.yaml", "--set", "train.epoch=1", "--out", "sweeps/out")
    assert done.code == 2
    assert "train.epoch: unknown key" in done.err
    trial = next(iter(state_of(here / "sweeps" / "tiny").trials))
    done = cli("trial", "job.yaml", "--set", "seed=99", "--out", f"sweeps/tiny/trials/{trial}")
    assert done.code == 2
    assert "holds another trial" in done.err
    done = cli("trial", "job.yaml", "--out", "job.yaml")
    assert done.code == 2
    assert "job.yaml" in done.err
    done = cli("trial", "job.yaml", "--set", "data.train_size=1500", "--out", "sweeps/out")
    assert done.code == 2
    assert "data.train_size" in done.err


def test_a_trial_that_diverges_ends_with_a_message_and_code_1(cli: Call, copy: Path) -> None:
    done = cli("trial", "job.yaml", "--set", "train.optimizer.lr=1e30", "--out", "one")
    assert done.code == 1
    assert "is not finite" in done.err


# -- ui


def test_ui_refuses_where_there_is_no_store_or_the_port_is_taken(
    cli: Call, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = cli("ui", "--port", str(taken.getsockname()[1]))
    assert done.code == 2
    assert "--port" in done.err
    for port in ("99999999", "-1"):
        done = cli("ui", "--port", port)
        assert done.code == 2
        assert f"--port: 1 problem got {port}" in done.text
    monkeypatch.chdir(tmp_path)
    done = cli("ui")
    assert done.code == 2
    assert "no MLflow store yet" in done.err
    assert listing(tmp_path) == {}


def test_ui_serves_the_store_on_this_machine_only(
    cli: Call, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Any] = []

    def server(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        started.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", server)
    done = cli("ui")
    assert done.code == 0
    (command,) = started
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert f"sqlite:///{here / 'sweeps' / 'mlflow.db'}" in command
    port = command[command.index("--port") + 1]
    assert f"http://127.0.0.1:{port}/#/experiments/1" in done.out
