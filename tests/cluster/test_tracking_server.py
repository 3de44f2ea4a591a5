"""The tracking server that cluster.yaml starts lets nobody in who does not say who they are."""

import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from postgres_server import Server
from tiny_job import call, environment, free_port, state_of, write_job

ROOT = Path(__file__).parents[2]
USER, PASSWORD = "researcher", "a long enough password"

pytestmark = pytest.mark.slow


@pytest.fixture
def tracking(tmp_path: Path, server: Server) -> Iterator[str]:
    """The server by the very command of the file, with PostgreSQL and a folder for artifacts."""
    port = free_port()
    values = {
        "PGHOST": "127.0.0.1",
        "PGPORT": str(server.port),
        "PGDATABASE": "postgres",
        "PGUSER": "robustfront",
        "PGPASSWORD": "unused",
        "ROBUSTFRONT_ARTIFACTS": str(tmp_path / "artifacts"),
        "MLFLOW_AUTH_ADMIN_USERNAME": USER,
        "MLFLOW_AUTH_ADMIN_PASSWORD": f"'{PASSWORD}'",
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "signs",
        "MLFLOW_PORT": str(port),
    }
    home = tmp_path / "home"
    home.mkdir()
    (home / "robustfront.env").write_text("".join(f"{k}={v}\n" for k, v in values.items()))
    command = yaml.safe_load((ROOT / "cluster.yaml").read_text())["head_start_ray_commands"][-1]
    # Its own group, so that all of its processes can be ended.
    started = subprocess.Popen(
        ["bash", "-c", command], env=environment(HOME=str(home)), start_new_session=True
    )
    started.wait(timeout=30)
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and status(f"{url}/health") != 200:
        time.sleep(1)
    yield url
    with suppress(ProcessLookupError):
        os.killpg(started.pid, signal.SIGKILL)


def status(url: str, user: str = "", password: str = "") -> int:
    request = urllib.request.Request(url)
    if user:
        token = b64encode(f"{user}:{password}".encode()).decode()
        request.add_header("Authorization", f"Basic {token}")
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def test_anonymous_access_is_refused_and_a_sweep_with_a_password_is_complete(
    tmp_path: Path, tracking: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = f"{tracking}/api/2.0/mlflow/experiments/search?max_results=5"
    assert status(search) == 401
    assert status(search, "admin", "password1234") == 401
    assert status(search, USER, PASSWORD) == 200
    job = write_job(tmp_path, tracking={"uri": tracking})
    refused = call(tmp_path, "run", str(job), "--executor", "inline")
    told = refused.stdout + refused.stderr
    assert refused.returncode == 1 and "Traceback" not in told
    assert "has not got" in told and "resume tiny" in told
    state = state_of(tmp_path / "sweeps" / "tiny")
    assert state.count("finished") == len(state.trials) == 4
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", USER)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    done = call(tmp_path, "resume", "tiny")
    assert done.returncode == 0, done.stdout + done.stderr
    from mlflow import MlflowClient

    client = MlflowClient(tracking)
    experiment = client.get_experiment_by_name("robustfront")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    trials = {r.data.tags.get("robustfront.trial"): r.info.run_id for r in runs}
    assert len(runs) == 5 and set(state.trials) < set(trials)
    parent = trials[None]
    assert "front/pareto.html" in {file.path for file in client.list_artifacts(parent, "front")}
    assert list((tmp_path / "artifacts").rglob("pareto.html")), "the artifacts went elsewhere"
