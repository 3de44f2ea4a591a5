"""MLflow and the ledger on PostgreSQL."""

import subprocess
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

import robustfront as rf
from postgres_server import Server
from robustfront.errors import ConfigError, DataError
from robustfront.ledger import Event, Ledger, is_sweep
from tiny_job import call, command, environment, errors_of, state_of, write_job

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


def test_eight_trials_at_once_lose_and_double_no_metric(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server
) -> None:
    monkeypatch.chdir(tmp_path)
    search = {"sampler": "random", "trials": 16, "scheduler": None, "max_concurrent": 8}
    database = server.url.replace("postgresql", "postgresql+psycopg")
    job = write_job(tmp_path, search=search, tracking={"uri": database})
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    done = rf.run(job)
    assert (done.problems, done.pending) == ((), 0)
    client = MlflowClient(database)
    experiment = client.get_experiment_by_name("robustfront")
    assert experiment is not None
    assert experiment.artifact_location == (tmp_path / "sweeps" / "mlartifacts").as_uri()
    runs = client.search_runs([experiment.experiment_id])
    children = {
        r.data.tags["robustfront.trial"]: r for r in runs if "robustfront.trial" in r.data.tags
    }
    assert len(runs) == 17 and set(children) == set(done.state.trials)
    for trial in done.state.trials.values():
        for name in trial.metrics:
            if name in trial.test:
                continue
            points = client.get_metric_history(children[trial.id].info.run_id, name)
            told = sorted((point.step, point.value) for point in points)
            assert told == [(e, report[name]) for e, report in sorted(trial.reports.items())]


def test_a_sweep_with_its_ledger_there_is_the_same_and_survives_the_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server
) -> None:
    monkeypatch.chdir(tmp_path)
    alone = rf.run(write_job(tmp_path), {"name": "alone"}, executor="inline")
    job = write_job(tmp_path, ledger={"url": server.url})
    running = subprocess.Popen(
        command("run", str(job), "--executor", "inline"),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    folder = tmp_path / "sweeps" / "tiny"
    while epochs(folder) < 4:
        assert running.poll() is None
        time.sleep(0.05)
    server.stop()
    out, err = running.communicate(timeout=120)
    assert running.returncode == 1 and "Traceback" not in out + err
    assert "the ledger cannot be used" in out and "resume tiny" in out
    down = call(tmp_path, "status")
    assert down.returncode == 1 and "the ledger cannot be used" in down.stderr
    server.start()
    done = call(tmp_path, "resume", "tiny")
    assert done.returncode == 0, done.stderr
    assert not (folder / "ledger.db").exists()
    sweep = rf.Sweep.open("tiny")
    assert errors_of(sweep.state) == errors_of(alone.state)
    ledger = Ledger.open(folder)
    assert ledger.acknowledged("mlflow") == ledger.read()[-1].seq
    ledger.close()


def epochs(folder: Path) -> int:
    """Epochs that a sweep has committed so far."""
    return state_of(folder).cost.epochs if is_sweep(folder) else 0


def test_ledgers_in_one_database_do_not_know_each_other(tmp_path: Path, server: Server) -> None:
    ledgers = [Ledger.create(tmp_path / name, server.url, name) for name in ("a", "b")]
    ledgers[0].append([Event("created", body={"job": {"name": "a"}})])
    assert [len(ledger.read()) for ledger in ledgers] == [1, 0]
    ledgers[1].drop()
    for ledger in ledgers:
        ledger.close()
    again = Ledger.open(tmp_path / "a")
    assert again.read()[0].body == {"job": {"name": "a"}}
    again.close()
    with pytest.raises(DataError, match="no events"):
        Ledger.open(tmp_path / "b")


def test_a_database_that_asks_for_the_password_in_clear_is_not_told_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server
) -> None:
    access = server.folder / "data" / "pg_hba.conf"
    access.write_text("host all all 127.0.0.1/32 password\n")
    server.stop()
    server.start()
    monkeypatch.setenv("PGPASSWORD", "secret")
    monkeypatch.chdir(tmp_path)
    job = write_job(tmp_path, ledger={"url": server.url})
    with pytest.raises(ConfigError, match="(?s)ledger.url.*cleartext password"):
        rf.run(job, executor="inline")
    assert not (tmp_path / "sweeps").exists()
