"""A sweep on a cluster whose nodes and tracking server die under it."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import robustfront as rf
from clusters import Separate, head
from mlflow_server import Tracking, check_told_once
from processes import wait_until
from tiny_job import command, environment, errors_of, free_port, reports, state_of, write_job

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

TRIALS, EPOCHS = 24, 5
OUTAGE, MISSED = 60.0, 40  # seconds, and epochs
LONG: dict[str, Any] = {
    "data": {"type": "digits", "train_size": 1000, "val_size": 100},
    "train": {"epochs": EPOCHS, "batch_size": 8, "optimizer": {"type": "sgd", "lr": 0.1}},
    "method": {"type": "trades", "inner": {"steps": 5}},
    "search_space": {"method.beta": {"log_uniform": [0.5, 12]}},
    "search": {"sampler": "random", "trials": TRIALS, "scheduler": None},
}


@pytest.fixture
def tracking(tmp_path: Path) -> Iterator[Tracking]:
    server = Tracking(tmp_path)
    yield server
    server.kill()


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head that runs no trials; workers come and go."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    monkeypatch.setenv("RAY_health_check_period_ms", "1000")
    monkeypatch.setenv("RAY_health_check_failure_threshold", "3")
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield made
    made.shutdown()


@pytest.fixture
def separate(tmp_path: Path) -> Iterator[Separate]:
    """A head that runs no trials; the nodes are machines of their own, as far as they can tell."""
    if os.geteuid() or shutil.which("ip") is None:
        pytest.skip("network namespaces take root and the command `ip`")
    made = Separate(tmp_path, free_port())
    where, _, port = made.address.partition(":")
    here = [f"--node-ip-address={where}", f"--port={port}", "--include-dashboard=false"]
    try:
        with head(tmp_path, *here, "--num-cpus=0"):
            yield made
    finally:
        made.shutdown()


def test_every_node_and_the_tracking_server_die_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: Any, tracking: Tracking
) -> None:
    monkeypatch.chdir(tmp_path)
    _strike(tmp_path, cluster, tracking, [_kill, _kill, _kill])


def test_nodes_lose_power_or_their_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, separate: Separate, tracking: Tracking
) -> None:
    """Nobody is told that a connection has ended; a node that is cut off trains on for a while."""
    monkeypatch.chdir(tmp_path)
    _strike(tmp_path, separate, tracking, [_kill, Separate.cut, _kill])


def test_a_node_that_does_not_see_the_storage_is_named(tmp_path: Path, separate: Separate) -> None:
    write_job(tmp_path)
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    separate.add_node(num_cpus=1, own=hidden)
    done = subprocess.run(
        command(
            "run", "job.yaml", "--address", separate.address, "--set", f"storage={hidden / 'sweep'}"
        ),
        cwd=tmp_path,
        env=environment(RAY_AUTH_MODE="disabled"),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert f"does not see {hidden}" in done.stderr and "Traceback" not in done.stderr
    assert not list(hidden.iterdir())


def _kill(cluster: Any, node: Any) -> None:
    cluster.remove_node(node, allow_graceful=False)


def _be_without(tracking: Tracking, process: subprocess.Popen[bytes], sweep: Path) -> None:
    """The server is away for a while, or some epochs: a fast machine would be through by then."""
    tracking.kill()
    end, before = time.monotonic() + OUTAGE, reports(sweep)
    wait_until(process, lambda: time.monotonic() > end or reports(sweep) >= before + MISSED)
    assert reports(sweep) > before, "training goes on without the server"
    tracking.start()


def _strike(
    folder: Path, cluster: Any, tracking: Tracking, strikes: list[Callable[[Any, Any], None]]
) -> None:
    """One after the other the first nodes are struck and replaced, in between the server."""
    job = write_job(folder, **LONG)
    alone = rf.run(job, {"name": "alone"}, executor="inline")
    assert alone.problems == ()

    nodes = [cluster.add_node(num_cpus=1) for _ in strikes]
    sweep = folder / "sweeps" / "struck"
    settings = ["--set", "name=struck", "--set", f"tracking.uri={tracking.uri}"]
    log = (folder / "log.txt").open("wb")
    process = subprocess.Popen(
        command("run", "job.yaml", "--address", cluster.address, *settings),
        env=environment(RAY_AUTH_MODE="disabled"),
        stdout=log,
        stderr=log,
    )
    try:
        for at, (strike, node) in enumerate(zip(strikes, nodes, strict=True)):
            wait_until(process, lambda goal=6 + 15 * at: reports(sweep) >= goal)
            strike(cluster, node)
            cluster.add_node(num_cpus=1)
            if at == 1:
                _be_without(tracking, process, sweep)
        assert process.wait(timeout=900) == 0, (folder / "log.txt").read_text()
    finally:
        process.kill()
        process.wait()
        log.close()

    state = state_of(sweep)
    assert {t.status for t in state.trials.values()} == {"finished"}
    assert len({t.number for t in state.trials.values()}) == len(state.trials) == TRIALS
    assert errors_of(state) == errors_of(state_of(folder / "sweeps" / "alone"))
    assert all(sorted(t.reports) == list(range(1, EPOCHS + 1)) for t in state.trials.values())

    check_told_once(tracking.uri, state)
