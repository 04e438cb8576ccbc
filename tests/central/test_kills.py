"""kill -9 of forwarder, service and data base: nothing is lost, nothing is twice (`python -m tests.scale.kills`)."""

from __future__ import annotations

import pytest

from tests.support import killing
from tests.support.central import cluster
from tests.support.postgres import postgres, programs


def test_sqlite() -> None:
    with cluster(1) as machines:
        struck = killing.run(machines, kills=14, records=3000, seed=1)
    assert len(struck) > 5, struck


@pytest.mark.skipif(programs() is None, reason="PostgreSQL is not installed")
def test_postgresql() -> None:
    with postgres() as server, cluster(1, server.url) as machines:
        struck = killing.run(machines, kills=12, records=3000, seed=2, database=server)
    assert any(name.startswith(killing.DATABASE) for name in struck)
