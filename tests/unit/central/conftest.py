"""An empty store of each kind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from piolet.central.store.database import connect

from tests.support.postgres import Postgres, postgres, programs


@pytest.fixture(scope="session")
def server() -> Iterator[Postgres]:
    """A PostgreSQL."""
    if programs() is None:
        pytest.skip("PostgreSQL is not installed")
    with postgres() as one:
        yield one


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty store."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/store.sqlite"
    server: Postgres = request.getfixturevalue("server")
    server.empty()
    return server.url


@pytest.fixture
def store(url: str) -> Iterator[sa.Engine]:
    """An empty store."""
    engine = connect(url, create=True)
    yield engine
    engine.dispose()
