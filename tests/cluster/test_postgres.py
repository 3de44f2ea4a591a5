"""MLflow on PostgreSQL."""

import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

import robustfront as rf
from tiny_job import free_port, write_job

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL server of its own; its address for SQLAlchemy."""
    programs = {name: shutil.which(name) for name in ("initdb", "postgres")}
    if not all(programs.values()):
        pytest.skip("no PostgreSQL (initdb, postgres) on this machine")
    folder = tmp_path_factory.mktemp("postgres")
    # PostgreSQL refuses to run as root.
    user: dict[str, Any] = {}
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        for parent in [folder, *folder.parents][:3]:
            parent.chmod(0o755)
        user = {"user": nobody.pw_uid, "group": nobody.pw_gid}
    port = free_port()
    where = str(folder / "data")
    options = ["-U", "robustfront", "--auth=trust", "-D", where]
    subprocess.run([programs["initdb"], *options], check=True, capture_output=True, **user)
    server = subprocess.Popen(
        [programs["postgres"], "-D", where, "-h", "127.0.0.1", "-p", str(port), "-k", str(folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        **user,
    )
    yield f"postgresql+psycopg://robustfront@127.0.0.1:{port}/postgres"
    server.send_signal(signal.SIGINT)  # SIGTERM would wait for MLflow's connections
    server.wait(timeout=30)


def test_eight_trials_at_once_lose_and_double_no_metric(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database: str
) -> None:
    monkeypatch.chdir(tmp_path)
    search = {"sampler": "random", "trials": 16, "scheduler": None, "max_concurrent": 8}
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
