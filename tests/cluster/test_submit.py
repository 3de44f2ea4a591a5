"""Sweeps handed to a cluster as jobs."""

import json
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from clusters import head
from robustfront.errors import ConfigError
from robustfront.executors.submit import check_submitter
from robustfront.ledger import Ledger, SweepState
from tiny_job import call, command, environment, free_port, write_job


def test_an_address_where_nobody_answers_is_refused(tmp_path: Path) -> None:
    write_job(tmp_path)
    before = set(tmp_path.rglob("*"))
    address = f"http://127.0.0.1:{free_port()}"
    done = call(tmp_path, "submit", "job.yaml", "--address", address)
    assert done.returncode == 2, done.stderr
    assert address in done.stderr and "no Ray dashboard answers there" in done.stderr
    assert "Traceback" not in done.stderr
    assert set(tmp_path.rglob("*")) == before


def test_a_cluster_that_does_not_answer_is_refused(tmp_path: Path) -> None:
    write_job(tmp_path)
    before = set(tmp_path.rglob("*"))
    address = f"127.0.0.1:{free_port()}"
    done = call(tmp_path, "run", "job.yaml", "--address", address)
    assert done.returncode == 2, done.stderr
    assert address in done.stderr and "no Ray cluster answers there" in done.stderr
    assert "Traceback" not in done.stderr
    assert set(tmp_path.rglob("*")) == before


def test_a_job_with_a_problem_is_not_submitted(tmp_path: Path) -> None:
    write_job(tmp_path, model={"type": "liner"})
    done = call(tmp_path, "submit", "job.yaml", "--address", "http://127.0.0.1:1")
    assert done.returncode == 2
    assert "did you mean 'linear'" in done.stderr


def test_a_cluster_with_other_versions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_submitter()
    told = {"python": "3.9", "ray": "1.0", "robustfront": "0.0.1"}
    monkeypatch.setenv("ROBUSTFRONT_SUBMITTER", json.dumps(told))
    with pytest.raises(ConfigError) as raised:
        check_submitter()
    assert len(raised.value.problems) == 3
    assert raised.value.problems[1].startswith("ray: submitted with 1.0, the cluster has 2.")


@pytest.fixture
def dashboard(tmp_path: Path) -> Iterator[str]:
    """The dashboard of a head on loopback; its address."""
    kinds = ["port", "dashboard-port", "dashboard-agent-listen-port", "ray-client-server-port"]
    ports = {kind: free_port() for kind in kinds}
    address = f"http://127.0.0.1:{ports['dashboard-port']}"

    def answers() -> bool:
        with suppress(OSError), urllib.request.urlopen(f"{address}/api/version", timeout=2):
            return True
        return False

    here = ["--num-cpus=2", "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1"]
    arguments = [f"--{name}={port}" for name, port in ports.items()]
    with head(tmp_path, *here, *arguments, ready=answers):
        yield address


@pytest.mark.slow
def test_a_submitted_sweep_runs_and_goes_on(tmp_path: Path, dashboard: str) -> None:
    search = {"sampler": "random", "trials": 2, "scheduler": None}
    write_job(tmp_path, search=search)

    def submit(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command("submit", "job.yaml", "--address", dashboard, "--follow", *more),
            cwd=tmp_path,
            env=environment(RAY_AUTH_MODE="disabled"),
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )

    done = submit()
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("raysubmit_")
    assert "[2/2]" in done.stdout and "hypervolume" in done.stdout
    again = submit()
    assert again.returncode == 1
    assert "the sweep" in again.stdout and "exists" in again.stdout
    resumed = submit("--resume")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    ledger = Ledger.open(tmp_path / "sweeps" / "tiny")
    state = SweepState.of(ledger.read())
    ledger.close()
    assert [trial.status for trial in state.trials.values()] == ["finished"] * 2
