"""A factorial design from its job file to its effects, also when it is killed."""

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient

import robustfront as rf
from robustfront.evaluation.records import Records
from robustfront.report import save_effects, show_effects
from robustfront.search.cells import chosen_numbers
from robustfront.sweep import certify
from tiny_job import (
    JOB,
    call,
    command,
    environment,
    errors_of,
    reports,
    run_alone,
    state_of,
    write_job,
)

pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")

JOB_OF_CELLS: dict[str, Any] = {
    "search": {"sampler": "random"},
    "search_space": {},
    "data": {
        "type": "linear_margin",
        "dimension": 20,
        "train_examples": 400,
        "test_examples": 300,
        "train_size": 300,
        "val_size": 100,
    },
    "method": {"type": "pgd_at"},
    "train": {**JOB["train"], "epochs": 2},
    "evaluate": {**JOB["evaluate"], "certify": {"type": "ibp"}, "gates": None},
    "ablation": {
        "factors": {"method.type": ["pgd_at", "ibp"], "data.margin": [0.1, 0.2]},
        "nuisance": {"train.optimizer.lr": {"log_uniform": [0.03, 0.3]}},
        "trials_per_cell": 2,
        "compare": "method.type",
        "seeds": [0, 1],
    },
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with run_alone(tmp_path_factory.mktemp("home"), JOB_OF_CELLS) as folder:
        yield folder


@pytest.fixture
def sweep(home: Path, monkeypatch: pytest.MonkeyPatch) -> rf.Sweep:
    monkeypatch.chdir(home)
    return rf.Sweep.open("alone")


def test_the_best_of_each_cell_has_all_seeds_and_is_measured(sweep: rf.Sweep) -> None:
    trials = list(sweep.state.trials.values())
    explored = [trial for trial in trials if trial.seed == 0]
    assert len(explored) == 8
    chosen = chosen_numbers(trials, sweep.job)
    for cell in range(4):
        own = [trial for trial in explored if trial.number % 4 == cell]
        best = min(own, key=lambda trial: trial.metrics["robust_error"])
        assert chosen[cell] == best.number
    again = [trial for trial in trials if trial.seed == 1]
    assert {trial.number for trial in again} == {*chosen.values()}
    for trial in trials:
        assert bool(trial.test) == (trial.number in {*chosen.values()})
        margin = trial.values["data.margin"]
        assert trial.config["data"]["margin"] == margin


def test_cells_of_other_data_are_trained_on_these(sweep: rf.Sweep) -> None:
    for trial in sweep.state.trials.values():
        if trial.test:
            y = rf.load_data(trial.config["data"], split="test")[1][:50]
            records = Records.load(sweep.folder / "trials" / trial.id / "test-pgd5x2.npz")
            assert (records.label == y.numpy()).all()
            x = rf.load_data(trial.config["data"], split="test")[0][:50]
            model = rf.load_model(sweep.folder / "trials" / trial.id)
            assert (model(x).argmax(1).numpy() == records.plain).all()


def test_the_gap_is_that_of_the_means_by_hand(sweep: rf.Sweep) -> None:
    view = sweep.effects()
    assert view.subtitle == "4 cells, 2 seeds, pgd5x2, test split"
    assert view.notes == ()
    for error, metric in [
        ("standard_error", "test/standard_error"),
        ("robust_error", "test/robust_error/linf_0.1/pgd5x2"),
        ("certified_error", "test/certified_error/linf_0.1/ibp"),
    ]:
        rows = [
            (t.values["method.type"], t.values["data.margin"], t.test[metric])
            for t in sweep.state.trials.values()
            if t.test
        ]
        table = pd.DataFrame(rows, columns=["method", "margin", "error"])
        means = table.groupby(["method", "margin"])["error"].mean()
        gaps = view.effects[error].gaps.set_index(["factor", "at"])
        for margin in (0.1, 0.2):
            by_hand = means["ibp", margin] - means["pgd_at", margin]
            row = gaps.loc[("data.margin", str(margin))]
            assert row["effect"] == pytest.approx(by_hand)
            assert row["low"] < by_hand < row["high"]


def test_tables_and_pictures_are_files_and_artifacts_of_the_parent(
    sweep: rf.Sweep, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    view = sweep.effects()
    save_effects(view, tmp_path / "effects.csv", tmp_path / "gaps.png")
    read = pd.read_csv(tmp_path / "effects.csv")
    assert {*read["error"]} == {"standard_error", "robust_error", "certified_error"}
    assert np.isfinite(read[["effect", "low", "high", "p_family"]].to_numpy()).all()
    assert (tmp_path / "gaps.png").read_bytes().startswith(b"\x89PNG")
    show_effects(view)
    assert "method.type, against pgd_at" in capsys.readouterr().out
    client = MlflowClient(f"sqlite:///{home / 'sweeps' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("robustfront")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    files = {file.path for file in client.list_artifacts(parent.info.run_id, "ablation")}
    names = ("effects.csv", "importance.csv", "gaps.png", "effects.png")
    assert files == {f"ablation/{name}" for name in names}
    cells = {run.data.tags["robustfront.cell"] for run in runs if run is not parent}
    assert len(cells) == 4


def test_commands_on_an_ablation(home: Path) -> None:
    done = call(home, "front", "alone")
    assert done.returncode == 0, done.stderr
    assert "share of the variance" in done.stdout
    wrong = call(home, "front", "alone", "--html", "page.html", "--x", "standard_error")
    assert wrong.returncode == 2
    assert "--html: is for fronts" in wrong.stderr
    more = call(home, "resume", "alone", "--set", "search.trials=9", "--executor", "inline")
    assert more.returncode == 2
    assert "an ablation decides that" in more.stderr


def test_a_study_that_was_killed_ends_like_one_left_alone(home: Path) -> None:
    for at in (3, 14):
        what = ["run", "job.yaml", "--set", "name=killed"] if at == 3 else ["resume", "killed"]
        process = subprocess.Popen(
            command(*what, "--executor", "inline"),
            cwd=home,
            env=environment(),
            stdout=subprocess.DEVNULL,
        )
        until = time.monotonic() + 120
        while reports(home / "sweeps" / "killed") < at and time.monotonic() < until:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    last = call(home, "resume", "killed", "--executor", "inline")
    assert last.returncode == 0, last.stderr
    killed, alone = (state_of(home / "sweeps" / name) for name in ("killed", "alone"))
    assert errors_of(killed) == errors_of(alone)


def test_cells_are_certified_again_each_by_its_own_certifier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    levels = {name: {"evaluate.certify": {"type": name}} for name in ("ibp", "crown_ibp")}
    ablation = {"factors": {"verifier": levels}, "trials_per_cell": 1, "seeds": [0]}
    changes = {**JOB_OF_CELLS, "train": {**JOB["train"], "epochs": 1}, "ablation": ablation}
    done = rf.run(write_job(tmp_path, **changes), executor="inline")
    before = {trial.id: {**trial.test} for trial in done.state.trials.values()}
    after, _, trials = certify(done.folder)
    assert len(trials) == 2
    assert after.problems == ()
    assert {trial.id: trial.test for trial in after.state.trials.values()} == before
