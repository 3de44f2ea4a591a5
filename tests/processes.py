"""Processes of this machine: who descends from whom, what they hold open, where they listen; how to
wait for one and how to end it."""

import ipaddress
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

Process = tuple[int, int]  # its id and when it started, for ids are used again
Start = Callable[..., subprocess.Popen[bytes]]  # a command line in the background
_LISTENING = "0A"


def processes() -> dict[Process, int]:
    """Every process and its parent."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            found[int(stat.parent.name), int(fields[19])] = int(fields[1])
    return found


def descendants(pid: int) -> set[Process]:
    """A process and all that it and its children have started."""
    parents = processes()
    family = {pid}
    while grown := {process[0] for process, parent in parents.items() if parent in family} - family:
        family |= grown
    return {process for process in parents if process[0] in family}


def title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def titled(pid: int, start: str) -> list[int]:
    """The descendants of a process whose title starts so."""
    return [child for child, _ in descendants(pid) if title(child).startswith(start)]


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """A process, if it has not ended, and all that it and its children have started."""
    family = descendants(process.pid) if process.poll() is None else set()
    for pid, _ in family:
        kill(pid)
    process.wait()


def wait_for(process: subprocess.Popen[bytes], reached: Callable[[], object]) -> None:
    """Until it is so, or the process has ended."""
    deadline = time.monotonic() + 600
    while not reached() and process.poll() is None:
        assert time.monotonic() < deadline, "it does not get on"
        time.sleep(0.02)


def wait_until(process: subprocess.Popen[bytes], reached: Callable[[], object]) -> None:
    """Until it is so, before the process ends."""
    wait_for(process, reached)
    assert reached(), "it has ended before"


def gone(family: set[Process], seconds: float = 90) -> set[Process]:
    """Those that are still there after a while, in which Ray's daemons notice and end."""
    deadline = time.monotonic() + seconds
    while (left := family & set(processes())) and time.monotonic() < deadline:
        time.sleep(0.2)
    return left


def held_open(pid: int) -> set[str]:
    """The files and sockets that a process holds open."""
    found = set()
    with suppress(OSError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                found.add(os.readlink(link))
    return found


def listening(pids: Iterable[int]) -> set[str]:
    """The addresses at which processes take TCP connections."""
    held = set().union(*map(held_open, pids))
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == _LISTENING and f"socket:[{fields[9]}]" in held:
                found.add(_address(fields[1].partition(":")[0]))
    return found


def _address(text: str) -> str:
    """The kernel writes words of four bytes, each in the order of this machine."""
    raw = bytes.fromhex(text)
    address = ipaddress.ip_address(b"".join(raw[at : at + 4][::-1] for at in range(0, len(raw), 4)))
    return str(getattr(address, "ipv4_mapped", None) or address)
