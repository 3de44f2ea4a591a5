"""Whole sweeps in this process: fronts, MLflow, crashes at any moment, a store that is away."""

import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from mlflow import MlflowClient

import robustfront as rf
from robustfront.evaluation.records import Records
from robustfront.ledger import Ledger, SweepState
from robustfront.sweep import resume
from tiny_job import call, command, environment, errors_of, rows, state_of, use_store, write_job

# MLflow's own tables use what SQLAlchemy 2.1 has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")

TEST = "test/robust_error/linf_0.1/pgd5x2"
VAL = "val/robust_error/linf_0.1/pgd3"
EPOCHS, TRIALS = 3, 5


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder a user works in, with one finished sweep."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        search = {"sampler": "random", "trials": TRIALS, "scheduler": None}
        done = rf.run(write_job(folder, search=search), executor="inline")
        assert done.problems == ()
        assert done.pending == 0
        yield folder


@pytest.fixture
def sweep(home: Path, monkeypatch: pytest.MonkeyPatch) -> rf.Sweep:
    monkeypatch.chdir(home)
    return rf.Sweep.open("tiny")


@pytest.fixture
def elsewhere(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another folder to work in, with a store that is empty but there."""
    use_store(tmp_path, empty_store(home))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def empty_store(home: Path) -> Path:
    """A copy of the store without its runs, made once."""
    path = home / "empty.db"
    if not path.exists():
        shutil.copy(home / "sweeps" / "mlflow.db", path)
        with closing(sqlite3.connect(path)) as connection:
            for table in ("metrics", "latest_metrics", "params", "tags", "runs"):
                connection.execute(f"DELETE FROM {table}")
            connection.execute("DELETE FROM experiments WHERE experiment_id != 0")
            connection.commit()
    return path


class Store:
    """The runs of one sweep in the MLflow store beside it."""

    def __init__(self, sweeps: Path, name: str) -> None:
        self.path = sweeps / "mlflow.db"
        self.client = MlflowClient(f"sqlite:///{self.path}")
        experiment = self.client.get_experiment_by_name("robustfront")
        assert experiment is not None
        query = f"tags.`robustfront.sweep` = '{name}'"
        runs = self.client.search_runs([experiment.experiment_id], query)
        self.parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
        self.child_runs = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
        self.children = {run.data.tags["robustfront.trial"]: run for run in self.child_runs}

    @property
    def parent(self) -> Any:
        (parent,) = self.parents
        return parent

    def points(self, run: Any) -> dict[tuple[str, int], list[float]]:
        """Every point of every metric of a run."""
        query = f"SELECT key, step, value FROM metrics WHERE run_uuid = '{run.info.run_id}'"
        found: dict[tuple[str, int], list[float]] = {}
        for key, step, value in rows(self.path, query):
            found.setdefault((key, step), []).append(value)
        return found

    def artifact(self, run: Any, path: str, folder: Path) -> Path:
        return Path(self.client.download_artifacts(run.info.run_id, path, str(folder)))

    def check_complete(self, state: SweepState) -> None:
        """Every trial has one run, every metric one point at each step, and none lacks."""
        assert len(self.parents) == 1
        assert len(self.child_runs) == len(self.children) == len(state.trials)
        for trial in state.trials.values():
            run = self.children[trial.id]
            expected = {
                (key, epoch): [value]
                for epoch, metrics in trial.reports.items()
                for key, value in metrics.items()
            }
            expected |= {(key, trial.epoch): [value] for key, value in trial.test.items()}
            assert self.points(run) == expected
            assert run.data.tags["mlflow.parentRunId"] == self.parent.info.run_id
            assert run.data.tags["robustfront.status"] == trial.status
        assert {len(values) for values in self.points(self.parent).values()} == {1}


def front_by_hand(points: dict[str, tuple[float, float]]) -> set[str]:
    """The trials that no other one dominates, by comparing all of them."""
    return {
        trial
        for trial, p in points.items()
        if not any(q[0] <= p[0] and q[1] <= p[1] and q != p for q in points.values())
    }


# -- the front


def test_the_front_in_python_and_in_all_files_is_the_one_found_by_hand(
    sweep: rf.Sweep, home: Path, tmp_path: Path
) -> None:
    store = Store(home / "sweeps", "tiny")
    assert len(store.children) == TRIALS
    expected = front_by_hand(
        {
            trial: (run.data.metrics["standard_error"], run.data.metrics["robust_error"])
            for trial, run in store.children.items()
        }
    )
    assert expected
    tagged = {t for t, r in store.children.items() if r.data.tags["robustfront.pareto"] == "true"}
    assert tagged == expected
    assert set(sweep.front()["trial"]) == expected
    files = store.artifact(store.parent, "front", tmp_path)
    table = pd.read_csv(files / "pareto.csv")
    assert set(table["trial"]) == set(store.children)
    assert set(table.loc[table["pareto"], "trial"]) == expected
    record = json.loads((files / "pareto.json").read_text())
    assert {row["trial"] for row in record["front"]} == expected
    assert record["objectives"] == ["standard_error", "robust_error"]
    assert record["hypervolume"] == store.parent.data.metrics["hypervolume"]
    errors = {row["trial"]: row["robust_error"] for row in record["trials"]}
    assert errors == dict(zip(table["trial"], table["robust_error"], strict=True))
    page = (files / "pareto.html").read_text()
    assert all(trial in page for trial in store.children)
    assert (files / "pareto.png").read_bytes().startswith(b"\x89PNG")


def test_the_members_of_the_front_and_no_others_are_measured_on_the_test_split(
    sweep: rf.Sweep,
) -> None:
    front = set(sweep.front()["trial"])
    measured = {t.id for t in sweep.state.trials.values() if TEST in t.metrics}
    assert measured == front
    tested = sweep.front("test")
    assert set(tested["trial"]) <= front
    assert not tested.empty
    assert set(tested["test_examples"]) == {50}
    assert (tested["test/standard_error"] <= tested[TEST]).all()


# -- MLflow


def test_examples_of_every_member_are_tried_on_every_other_also_of_later_ones(
    elsewhere: Path,
) -> None:
    space = {"method.type": {"choice": ["standard", "pgd_at"]}}
    search = {"sampler": "grid", "trials": 1, "scheduler": None}
    train = {"epochs": 15, "batch_size": 32, "optimizer": {"type": "adam", "lr": 0.01}}
    method = {"type": "pgd_at", "inner": {"steps": 3}}
    changes = {"search_space": space, "search": search, "train": train, "method": method}
    job = write_job(elsewhere, **changes)
    (first,) = rf.run(job, executor="inline").state.trials.values()
    found = resume("tiny", set={"search.trials": 2})
    front = found.front_view("val")
    names = set(front.members["trial"])
    assert len(names) == 2 and first.id in names
    pairs = set(zip(front.transfer["source"], front.transfer["target"], strict=True))
    assert pairs == {(source, target) for source in names for target in names}
    plain = front.members.set_index("trial")["test/standard_error"]
    assert set(front.transfer["threat"]) == {"linf_0.1"}
    own = front.transfer.query("source == target").set_index("target")["error"]
    assert (own >= plain).all() and (own <= 1).all()
    (picture,) = (elsewhere / "sweeps" / "mlartifacts").glob("*/artifacts/front/transfer.png")
    assert picture.stat().st_size > 1000
    again = resume("tiny")
    assert [t.measured for t in again.state.trials.values()] == [2, 1]


def test_one_parent_and_a_child_for_each_trial_hold_every_metric_once(
    sweep: rf.Sweep, home: Path
) -> None:
    store = Store(home / "sweeps", "tiny")
    store.check_complete(sweep.state)
    for run in store.children.values():
        points = store.points(run)
        for key in ("standard_error", "robust_error", "val/standard_error", VAL, "train_seconds"):
            assert [step for k, step in sorted(points) if k == key] == list(range(1, EPOCHS + 1))


def test_children_carry_resolved_parameters_tags_and_times(sweep: rf.Sweep, home: Path) -> None:
    store = Store(home / "sweeps", "tiny")
    for trial in sweep.state.trials.values():
        run = store.children[trial.id]
        config = rf.TrialConfig.model_validate(trial.config)
        assert run.data.params == {key: str(value) for key, value in config.parameters().items()}
        for key, value in trial.values.items():
            if not isinstance(value, dict):
                assert run.data.params[key] == str(value)
        assert ("method.lambda" in run.data.params) == (config.method.type == "trades")
        assert run.data.tags["robustfront.status"] == "finished"
        assert run.data.tags["robustfront.sweep"] == "tiny"
        assert run.data.tags["robustfront.version"] == store.parent.data.tags["robustfront.version"]
        assert run.info.status == "FINISHED"
        assert run.info.end_time >= run.info.start_time
    assert {run.data.params["method.type"] for run in store.children.values()} == {
        "standard",
        "trades",
    }


def test_the_parent_has_the_job_the_counts_and_a_growing_hypervolume(
    sweep: rf.Sweep, home: Path, tmp_path: Path
) -> None:
    store = Store(home / "sweeps", "tiny")
    assert store.parent.info.status == "FINISHED"
    assert "robustfront.version" in store.parent.data.tags
    assert store.parent.data.metrics["trials/finished"] == TRIALS
    assert store.parent.data.metrics["trials/running"] == 0
    points = store.points(store.parent)
    volumes = [points["hypervolume", finished][0] for finished in range(1, TRIALS + 1)]
    assert volumes == sorted(volumes)
    assert volumes[-1] == sweep.front_view().hypervolume
    job = yaml.safe_load(store.artifact(store.parent, "job.yaml", tmp_path).read_text())
    assert job == sweep.state.job
    space = yaml.safe_load(store.artifact(store.parent, "search_space.yaml", tmp_path).read_text())
    assert space == yaml.safe_load((home / "space.yaml").read_text())


def test_a_child_s_checkpoint_alone_rebuilds_its_model(
    sweep: rf.Sweep, home: Path, tmp_path: Path
) -> None:
    store = Store(home / "sweeps", "tiny")
    x, y = rf.load_data({"type": "digits", "train_size": 200, "val_size": 100}, split="val")
    for trial, run in store.children.items():
        records = Records.load(home / "sweeps" / "tiny" / "trials" / trial / "records.npz")
        assert np.array_equal(records.label, y.numpy())
        folders = [
            home / "sweeps" / "tiny" / "trials" / trial,
            store.artifact(run, "checkpoint", tmp_path / trial),
        ]
        for folder in folders:
            model = rf.load_model(folder)
            assert not model.training
            with torch.no_grad():
                predicted = model(x).argmax(1).numpy()
            assert np.array_equal(predicted, records.plain)


def test_records_in_mlflow_and_in_python_give_the_reported_errors(
    sweep: rf.Sweep, home: Path, tmp_path: Path
) -> None:
    store = Store(home / "sweeps", "tiny")
    every = sweep.records
    assert len(every) == TRIALS * 100
    for trial, run in store.children.items():
        table = pd.read_parquet(store.artifact(run, "records.parquet", tmp_path / trial))
        mine = every[every["trial"] == trial].reset_index(drop=True)
        assert table.equals(mine[table.columns])
        wrong = table["plain"] != table["label"]
        attacked = wrong | (table["linf_0.1/pgd3"] != table["label"])
        assert run.data.metrics["standard_error"] == wrong.mean()
        assert run.data.metrics["robust_error"] == attacked.mean() == run.data.metrics[VAL]


# -- the sweep in Python


def test_a_sweep_is_opened_by_its_name_or_its_folder(sweep: rf.Sweep, home: Path) -> None:
    for where in ("tiny", home / "sweeps" / "tiny", "sweeps/tiny"):
        assert rf.Sweep.open(where).state == sweep.state
    with pytest.raises(rf.DataError, match="did you mean 'tiny'"):
        rf.Sweep.open("tiiny")


def test_its_tables_name_every_trial_its_settings_and_its_metrics(sweep: rf.Sweep) -> None:
    table = sweep.trials
    assert list(table["number"]) == list(range(TRIALS))
    assert set(table["state"]) == {"finished"}
    assert set(table["epoch"]) == {EPOCHS}
    trades = table[table["method.type"] == "trades"]
    assert np.allclose(trades["method.lambda"] * trades["method.beta"], 1)
    assert np.allclose(table["train_threat.mix.linf"] + table["train_threat.mix.l2"], 1)
    front = sweep.front(x="train/loss", y=VAL)
    assert front["train/loss"].is_monotonic_increasing
    assert front[VAL].is_monotonic_decreasing


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "tset"}, "did you mean 'test'"),
        ({"x": "standard_eror"}, "did you mean 'standard_error'"),
        ({"y": "nothing"}, "allowed: "),
    ],
)
def test_a_front_that_does_not_exist_is_refused(
    sweep: rf.Sweep, arguments: dict[str, str], message: str
) -> None:
    with pytest.raises(rf.ConfigError, match=message):
        sweep.front(**arguments)


def test_a_resume_that_has_nothing_to_do_changes_nothing(sweep: rf.Sweep, home: Path) -> None:
    before = Store(home / "sweeps", "tiny")
    again = resume("tiny")
    assert again.state == sweep.state
    after = Store(home / "sweeps", "tiny")
    after.check_complete(sweep.state)
    assert {t: r.info.run_id for t, r in after.children.items()} == {
        t: r.info.run_id for t, r in before.children.items()
    }
    assert after.parent.info.run_id == before.parent.info.run_id


# -- other jobs


def listing(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def test_a_sweep_is_extended_by_new_trials(elsewhere: Path) -> None:
    job = write_job(elsewhere, search={"sampler": "random", "trials": 2, "scheduler": None})
    first = rf.run(job, executor="inline")
    errors = errors_of(first.state)
    longer = resume("tiny", set={"search.trials": 4})
    assert (longer.problems, longer.pending) == ((), 0)
    assert [trial.number for trial in longer.state.trials.values()] == [0, 1, 2, 3]
    kept = {trial: errors_of(longer.state)[trial] for trial in errors}
    assert {t: e["robust_error"] for t, e in kept.items()} == {
        t: e["robust_error"] for t, e in errors.items()
    }
    store = Store(elsewhere / "sweeps", "tiny")
    store.check_complete(longer.state)
    at_once = rf.run(job, {"search.trials": 4, "name": "at-once"}, executor="inline")
    assert {
        t: (e["standard_error"], e["robust_error"]) for t, e in errors_of(at_once.state).items()
    } == {t: (e["standard_error"], e["robust_error"]) for t, e in errors_of(longer.state).items()}


def test_several_threats_are_measured_with_their_union_for_every_seed(elsewhere: Path) -> None:
    threats = [{"norm": "linf", "eps": "1/10"}, {"norm": "l2", "eps": "1/2"}]
    search = {"sampler": "random", "trials": 2, "seeds": [0, 3], "scheduler": None}
    objectives = [
        "standard_error",
        "val/robust_error/linf_0.1/pgd3",
        "val/robust_error/l2_0.5/pgd3",
    ]
    job = write_job(elsewhere, threat=threats, search=search, objectives=objectives)
    done = rf.run(job, executor="inline")
    assert done.problems == ()
    assert sorted(zip(done.trials["number"], done.trials["seed"], strict=True)) == [
        (0, 0),
        (0, 3),
        (1, 0),
        (1, 3),
    ]
    for trial in done.state.trials.values():
        union = trial.metrics["val/robust_error/union/pgd3"]
        assert union == trial.metrics["robust_error"]
        assert union >= max(trial.metrics[name] for name in objectives[1:])
    store = Store(elsewhere / "sweeps", "tiny")
    store.check_complete(done.state)
    tagged = {t for t, r in store.children.items() if r.data.tags["robustfront.pareto"] == "true"}
    measured = {t.id for t in done.state.trials.values() if t.test}
    assert tagged == measured
    assert set(done.front()["trial"]) == tagged, "the front by three objectives has these members"


def test_a_single_objective_has_a_front_of_its_best_trials(elsewhere: Path) -> None:
    job = write_job(elsewhere, objectives=["robust_error"])
    done = rf.run(job, executor="inline")
    assert done.problems == ()
    best = done.trials["robust_error"].min()
    assert set(done.front()["robust_error"]) == {best}


def test_trials_that_diverge_are_the_worst_and_shown(elsewhere: Path) -> None:
    space = {"train.optimizer.lr": {"choice": [0.1, 1e30]}}
    job = write_job(elsewhere, search_space=space, search={"sampler": "grid", "trials": 2})
    done = rf.run(job, executor="inline")
    table = done.trials.set_index("train.optimizer.lr")
    assert dict(table["state"]) == {0.1: "finished", 1e30: "diverged"}
    assert "not finite" in table.loc[1e30, "reason"]
    assert list(done.front()["train.optimizer.lr"]) == [0.1]
    assert done.front_view().diverged_share == 0.5
    store = Store(elsewhere / "sweeps", "tiny")
    bad = store.children[table.loc[1e30, "trial"]]
    assert bad.data.tags["robustfront.status"] == "diverged"
    assert "not finite" in bad.data.tags["robustfront.reason"]
    assert bad.data.metrics["robust_error"] == 1.0
    assert bad.info.status == "FAILED"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.train_size": 5000}, "train_size"),
        ({"data.val_size": 5000}, "val_size"),
        ({"model.type": "small_cnn"}, "model.type"),
        ({"resources.gpu": 1}, "resources.gpu"),
        ({"objectives": ["certified_error"]}, "objectives"),
    ],
)
def test_a_job_that_no_trial_can_run_is_refused_before_anything_is_written(
    elsewhere: Path, changes: dict[str, Any], message: str
) -> None:
    if "resources.gpu" in changes and torch.cuda.is_available():
        pytest.skip("a GPU is here")
    job = write_job(elsewhere)
    before = listing(elsewhere)
    with pytest.raises(rf.ConfigError, match=message):
        rf.run(job, changes, executor="inline")
    assert listing(elsewhere) == before


def test_a_name_that_is_taken_is_refused_and_nothing_overwritten(
    sweep: rf.Sweep, home: Path
) -> None:
    before = {p: p.read_bytes() for p in (home / "sweeps" / "tiny").rglob("*") if p.is_file()}
    with pytest.raises(rf.ConfigError, match="robustfront resume tiny"):
        rf.run(home / "job.yaml", executor="inline")
    after = {p: p.read_bytes() for p in (home / "sweeps" / "tiny").rglob("*") if p.is_file()}
    assert after == before


def test_what_would_make_trials_incomparable_cannot_change_on_resume(sweep: rf.Sweep) -> None:
    with pytest.raises(rf.ConfigError, match=r"train\.epochs: cannot change in a sweep"):
        resume("tiny", set={"train.epochs": 9})
    with pytest.raises(rf.ConfigError, match="has more trials already"):
        resume("tiny", set={"search.trials": TRIALS - 1})
    assert rf.Sweep.open("tiny").state == sweep.state


# -- killed at any moment


def count_of(ledger: Path, query: str) -> int:
    found = rows(ledger, query)
    return int(found[0][0] or 0) if found else 0


def kill_when(process: subprocess.Popen[bytes], reached: Callable[[], bool], delay: float) -> bool:
    """SIGKILL the process and all it started, a little after a condition; whether it still ran."""
    deadline = time.monotonic() + 240
    while not reached() and process.poll() is None:
        assert time.monotonic() < deadline, "it does not get on"
        time.sleep(0.01)
    time.sleep(delay)
    alive = process.poll() is None
    if alive:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return alive


PLAIN = {"sampler": "random", "trials": 4, "scheduler": None}
HALVED = {"type": "mo_asha", "grace_epochs": 2, "reduction_factor": 2, "mode": "promote"}


@pytest.mark.parametrize(
    "search",
    [PLAIN, {"sampler": "random", "trials": 6, "scheduler": HALVED, "seeds": [0, 1]}],
    ids=["plain", "halved"],
)
def test_a_sweep_killed_three_times_ends_like_one_left_alone(
    elsewhere: Path, search: dict[str, Any]
) -> None:
    moments = random.Random(2026)
    train = {"epochs": 5, "batch_size": 16, "optimizer": {"type": "sgd", "lr": 0.1}}
    data = {"type": "digits", "train_size": 600, "val_size": 100}
    job = write_job(elsewhere, name="killed", search=search, train=train, data=data)
    folder = elsewhere / "sweeps" / "killed"
    ledger = folder / "ledger.db"
    reports = "SELECT count(*) FROM events WHERE kind = 'reported'"
    shipped = "SELECT seq FROM offsets WHERE consumer = 'mlflow'"
    goals = [
        (reports, moments.randint(1, 7)),
        (reports, moments.randint(9, 16)),
        (shipped, moments.randint(10, 25)),
    ]
    for number, (query, goal) in enumerate(goals):
        what = ["run", str(job)] if number == 0 else ["resume", "killed"]
        process = subprocess.Popen(
            command(*what, "--executor", "inline"),
            cwd=elsewhere,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        delay = moments.uniform(0, 0.05)
        assert kill_when(
            process, lambda query=query, goal=goal: count_of(ledger, query) >= goal, delay
        ), f"it had ended before kill {number}"
        assert rows(ledger, "PRAGMA integrity_check") == [("ok",)]
    last = call(elsewhere, "resume", "killed", "--executor", "inline")
    assert last.returncode == 0, last.stdout + last.stderr
    alone = rf.run(job, {"name": "alone"}, executor="inline")
    killed = state_of(folder)
    starts = [sum(t.starts for t in state.trials.values()) for state in (killed, alone.state)]
    assert starts[0] > starts[1], "no trial was interrupted"
    assert errors_of(killed) == errors_of(alone.state)
    for trial in alone.state.trials.values():
        again = killed.trials[trial.id]
        assert (again.status, again.reason) == (trial.status, trial.reason)
        assert set(again.reports) == set(trial.reports)
    assert ("pruned" in set(alone.trials["state"])) == (search["scheduler"] is not None)
    for trial in alone.trials["trial"][alone.trials["state"] == "finished"]:
        weights = [
            elsewhere / "sweeps" / name / "trials" / trial / "checkpoint" / "last.safetensors"
            for name in ("killed", "alone")
        ]
        assert weights[0].read_bytes() == weights[1].read_bytes()
    Store(elsewhere / "sweeps", "killed").check_complete(killed)
    opened = rf.Sweep.open("killed")
    assert set(opened.front("test")["trial"]) == set(alone.front("test")["trial"])
    assert set(opened.front()["trial"]) <= set(
        opened.trials["trial"][opened.trials["state"] == "finished"]
    )


# -- a tracking server that is away


def test_a_dead_tracking_server_costs_the_sweep_nothing_but_a_message(elsewhere: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    job = write_job(elsewhere, tracking={"uri": f"http://127.0.0.1:{port}"})
    started = time.monotonic()
    done = rf.run(job, executor="inline")
    assert time.monotonic() - started < 45
    assert set(done.trials["state"]) == {"finished"}
    ledger = Ledger.open(done.folder)
    assert done.pending == len(ledger.read()) > 0
    ledger.close()
    (problem,) = done.problems
    assert f"{done.pending} events" in problem
    assert "robustfront resume tiny" in problem


def test_after_an_outage_everything_is_in_mlflow_once(elsewhere: Path) -> None:
    later = elsewhere / "later"
    later.write_text("a file where the store's folder will be")
    job = write_job(elsewhere, tracking={"uri": f"sqlite:///{later}/mlflow.db"})
    done = rf.run(job, executor="inline")
    assert done.pending > 0
    assert done.problems
    later.unlink()
    later.mkdir()
    shutil.copy(elsewhere / "sweeps" / "mlflow.db", later / "mlflow.db")
    again = resume("tiny")
    assert (again.pending, again.problems) == (0, ())
    assert again.state == done.state
    store = Store(later, "tiny")
    store.check_complete(done.state)
    artifacts = {file.path for file in store.client.list_artifacts(store.parent.info.run_id)}
    assert artifacts == {"front", "job.yaml", "search_space.yaml"}
