"""Options and fixtures that all tests share."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from processes import Start, kill_all
from robustfront.randomness import seed_of
from tiny_job import command, environment


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--data-root",
        default="../shared/data",
        help="folder with MNIST/raw, FashionMNIST/raw, ...; tests on real data skip without it",
    )


@pytest.fixture(scope="session")
def data_root(request: pytest.FixtureRequest) -> Path:
    """Real data on disk."""
    root = Path(request.config.getoption("--data-root")).absolute()
    if not (root / "MNIST" / "raw").is_dir():
        pytest.skip(f"no MNIST/raw under {root} (set --data-root)")
    return root


@pytest.fixture(autouse=True)
def _repeatable(request: pytest.FixtureRequest) -> None:
    """One thread, and the same global randomness whichever tests ran before."""
    torch.set_num_threads(1)
    torch.manual_seed(seed_of("tests", request.node.nodeid))


@pytest.fixture
def start(home: Path) -> Iterator[Start]:
    """Starts commands in the module's `home`; what a failed test leaves of them is killed."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(*arguments: str) -> subprocess.Popen[bytes]:
        with (home / "log.txt").open("ab") as log:
            process = subprocess.Popen(
                command(*arguments), cwd=home, env=environment(), stdout=log, stderr=log
            )
        started.append(process)
        return process

    yield begin
    for process in started:
        kill_all(process)
