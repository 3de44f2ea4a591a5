"""A sweep on a cluster that grows by what waits, and shrinks when nothing does."""

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clusters import head
from processes import wait_until
from tiny_job import command, environment, errors_of, free_port, run_alone, state_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

JOB: dict[str, Any] = {
    "data": {"type": "digits", "train_size": 1000, "val_size": 100},
    "train": {"epochs": 4, "batch_size": 16, "optimizer": {"type": "sgd", "lr": 0.1}},
    "search": {"sampler": "random", "trials": 6, "scheduler": None},
}
IDLE_MINUTES = 0.15
NODE: dict[str, Any] = {"node_config": {}, "min_workers": 0}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with run_alone(tmp_path_factory.mktemp("autoscaling"), JOB) as folder:
        yield folder


@pytest.fixture
def address(home: Path) -> Iterator[str]:
    """A head without CPUs whose autoscaler starts up to two workers of one CPU, in processes of
    this machine."""
    where = f"127.0.0.1:{free_port()}"
    lists = ["initialization_commands", "setup_commands", "head_setup_commands"]
    lists += ["worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands"]
    config = {
        "cluster_name": "growing",
        "max_workers": 2,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": IDLE_MINUTES,
        "provider": {
            "type": "fake_multinode",
            "gcs_address": where,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "available_node_types": {
            "ray.head.default": {**NODE, "resources": {"CPU": 0}, "max_workers": 0},
            "worker": {**NODE, "resources": {"CPU": 1}, "max_workers": 2},
        },
        "head_node_type": "ray.head.default",
        **{key: {} for key in ("auth", "docker", "file_mounts", "head_node", "worker_nodes")},
        **{key: [] for key in (*lists, "cluster_synced_files", "rsync_exclude", "rsync_filter")},
        "file_mounts_sync_continuously": False,
    }
    file = home / "cluster.json"
    file.write_text(json.dumps(config))
    ip, _, port = where.partition(":")
    arguments = [f"--autoscaling-config={file}", "--num-cpus=0", f"--port={port}"]
    arguments += [f"--node-ip-address={ip}", "--include-dashboard=false"]
    with head(home, *arguments, RAY_FAKE_CLUSTER="1", AUTOSCALER_UPDATE_INTERVAL_S="1"):
        yield where


def workers(address: str) -> int:
    """How many nodes there are beside the head."""
    from ray._raylet import GcsClient

    nodes = GcsClient(address=address).get_all_node_info().values()
    return sum(not node.is_head_node and node.state == node.ALIVE for node in nodes)


def test_up_with_the_trials_and_back_to_nothing(home: Path, address: str) -> None:
    def run(*more: str) -> subprocess.Popen[bytes]:
        with (home / "log.txt").open("ab") as log:
            return subprocess.Popen(
                command("run", "job.yaml", "--address", address, "--set", "name=grown", *more),
                cwd=home,
                env=environment(RAY_AUTH_MODE="disabled"),
                stdout=log,
                stderr=log,
            )

    assert workers(address) == 0
    assert run().wait(timeout=300) == 2
    assert "search.max_concurrent" in (home / "log.txt").read_text()
    assert not (home / "sweeps" / "grown").exists() and workers(address) == 0

    process = run("--set", "search.max_concurrent=2")
    try:
        wait_until(process, lambda: workers(address) == 2)
        assert process.wait(timeout=600) == 0, (home / "log.txt").read_text()
    finally:
        process.kill()
        process.wait()
    state = state_of(home / "sweeps" / "grown")
    assert [trial.status for trial in state.trials.values()] == ["finished"] * 6
    assert errors_of(state) == errors_of(state_of(home / "sweeps" / "alone"))

    deadline = time.monotonic() + 60 * IDLE_MINUTES + 120
    while workers(address) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert workers(address) == 0
