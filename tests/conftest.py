"""Options and fixtures that all tests share."""

from pathlib import Path

import pytest
import torch

from robustfront.randomness import seed_of


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
