"""What tests of a deployment need beside a sweep."""

import shutil
from collections.abc import Iterator

import pytest

from postgres_server import Server


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if not all(shutil.which(name) for name in ("initdb", "postgres")):
        pytest.skip("no PostgreSQL (initdb, postgres) on this machine")
    made = Server(tmp_path_factory.mktemp("postgres"))
    made.start()
    yield made
    made.stop()
