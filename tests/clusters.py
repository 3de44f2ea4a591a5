"""Ray clusters on one machine: a head of its own, and nodes that only a network joins to it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from processes import kill
from tiny_job import environment

RAY = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]


def begin(
    arguments: list[str], log: Path, ready: Callable[[], object] | None = None, **env: str
) -> subprocess.Popen[bytes]:
    """A node, once it is ready: it tells its log so, or `ready` knows."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            arguments,
            env=cluster_environment(**env),
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    deadline = time.monotonic() + 120
    while not (ready() if ready else "Ray runtime started" in log.read_text()):
        assert time.monotonic() < deadline and process.poll() is None, log.read_text()
        time.sleep(0.5)
    return process


@contextmanager
def head(
    folder: Path, *arguments: str, ready: Callable[[], object] | None = None, **env: str
) -> Iterator[None]:
    """The head of a cluster, which ends with what is done in it."""
    process = begin([*RAY, "--head", *arguments], folder / "head.log", ready, **env)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)


def cluster_environment(**changes: str) -> dict[str, str]:
    """What all nodes of a cluster need; its jobs find the interpreter of the tests."""
    return environment(
        RAY_AUTH_MODE="disabled",
        RAY_ENABLE_UV_RUN_RUNTIME_ENV="0",
        RAY_health_check_period_ms="1000",
        RAY_health_check_failure_threshold="3",
        PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        **changes,
    )


class Separate:
    """Nodes in network namespaces, each behind a cable of its own, with a disk for Ray of its own.

    The head is in the namespace of the tests, at the bridge that joins the cables. Needs root.
    """

    NET, BRIDGE = "10.213.77", "rf-bridge"

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.address = folder, f"{self.NET}.1:{port}"
        self.made = 0
        ip("link", "add", self.BRIDGE, "type", "bridge")
        ip("addr", "add", f"{self.NET}.1/24", "dev", self.BRIDGE)
        ip("link", "set", self.BRIDGE, "up")

    def add_node(self, num_cpus: int, own: Path | None = None) -> str:
        """A node that has joined; the name of its namespace and of its cable.

        Args:
            own: a folder that is another one there.
        """
        self.made += 1
        name, here = f"rf-node{self.made}", f"{self.NET}.{self.made + 1}"
        ip("netns", "add", name)
        ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("link", "set", name, "master", self.BRIDGE, "up")
        ip("-n", name, "link", "set", "lo", "up")
        ip("-n", name, "addr", "add", f"{here}/24", "dev", "eth0")
        ip("-n", name, "link", "set", "eth0", "up")
        ip("-n", name, "route", "add", "default", "via", f"{self.NET}.1")
        arguments = [*RAY, f"--address={self.address}", f"--node-ip-address={here}"]
        own_disk = 'mount -t tmpfs none /tmp/ray && mount -t tmpfs none "$0" && exec "$@"'
        begin(
            ["ip", "netns", "exec", name, "sh", "-c", own_disk, own or "/tmp/ray", *arguments]
            + [f"--num-cpus={num_cpus}"],
            self.folder / f"{name}.log",
        )
        return name

    def cut(self, node: str) -> None:
        """Nothing gets through to it any more; its processes do not know."""
        ip("link", "set", node, "down")

    def remove_node(self, node: str, allow_graceful: bool) -> None:
        """Without power: it falls silent."""
        self.cut(node)
        while pids := ip("netns", "pids", node).split():
            for pid in pids:
                kill(int(pid))
            time.sleep(0.1)  # one that has just been started is found the next time

    def shutdown(self) -> None:
        for line in ip("netns", "list").splitlines():
            name = line.split()[0]
            if name.startswith("rf-node"):
                self.remove_node(name, allow_graceful=False)
                ip("link", "del", name)
                ip("netns", "del", name)
        ip("link", "del", self.BRIDGE)


def ip(*arguments: str) -> str:
    """Change the network."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (arguments, done.stderr)
    return done.stdout
