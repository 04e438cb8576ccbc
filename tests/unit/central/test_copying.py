"""A store that moves to another data base: what is there says the same, and the service goes on in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from piolet.base.errors import EventError
from piolet.central.conclusions import OPEN, Conclusion
from piolet.central.store import states, wordings
from piolet.central.store.copying import copy
from piolet.central.store.database import alone, connect
from piolet.central.store.reader import Reader
from piolet.central.store.schema import METADATA
from piolet.central.store.writer import Arrival, Writer

from tests.support.postgres import Postgres
from tests.unit.central.test_store import FULL, A, B, event


@pytest.fixture(params=["sqlite-postgresql", "postgresql-sqlite", "sqlite-sqlite"])
def places(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    """The addresses of a store, and of where it goes."""
    found = []
    for number, kind in enumerate(request.param.split("-")):
        if kind == "postgresql":
            server: Postgres = request.getfixturevalue("server")
            server.empty()
            found.append(server.url)
        else:
            found.append(f"sqlite:///{tmp_path}/{number}.sqlite")
    return found[0], found[1]


@pytest.fixture
def filled(places: tuple[str, str]) -> Iterator[sa.Engine]:
    """A store with something in each table."""
    engine = connect(places[0], create=True)
    writer = Writer(engine)
    writer.append([
        Arrival("node1", [FULL, *(event(seq) for seq in range(2, 2500))], 1.7e9 + 1, {}, 3600.0),
        Arrival("node2", [event(8, "node2", B)], 1.7e9 + 2, {B: 7}),
    ])  # fmt: skip
    for seq in range(2500, 2520):
        writer.append([Arrival("node1", [event(seq)], 1.7e9 + seq)])
    case = Conclusion(
        "c" * 16, "lemon", "d" * 16, "alps", "node1", "", 1.7e9, OPEN, "weight", "it is one", (("node1", A, 1),), {}
    )
    wordings.conclude(writer, [(case, 1)], 1.7e9 + 3)
    states.put(writer, "{}", b"\0state" * 400_000)
    with engine.begin() as connection:
        row = {"time": 1.0, "kind": "note", "node": 1, "uid": 2**32 - 2, "text": "Riß", "case": None}
        connection.execute(sa.insert(METADATA.tables["notes"]).values(row))
        connection.execute(sa.insert(METADATA.tables["kept"]).values(name="slurm.accounting", value=1.7e9 + 0.123456))
    yield engine
    engine.dispose()


def rows_of(engine: sa.Engine) -> dict[str, list[tuple[object, ...]]]:
    with engine.connect() as connection:
        return {
            table.name: [tuple(row) for row in connection.execute(sa.select(table).order_by(*table.primary_key))]
            for table in METADATA.sorted_tables
        }


def test_everything_is_there_and_it_goes_on(filled: sa.Engine, places: tuple[str, str]) -> None:
    before = rows_of(filled)
    assert all(before.values()), "each table has something"
    assert copy(*places) == {name: len(rows) for name, rows in before.items()}
    engine = connect(places[1])
    assert rows_of(engine) == before
    (taken,) = Writer(engine).append([Arrival("node3", [event(1, "node3", A), event(2, "node3", A)], 1.8e9)])
    assert len(taken.stored) == 2, "a name and a stream of their own numbers"
    (again,) = Writer(engine).append([Arrival("node1", [event(2519), event(2520)], 1.8e9)])
    assert [one.event.seq for one in again.stored] == [2520]
    assert len({one.event.key for one in Reader(engine, "alps").arrivals()}) == 2523
    engine.dispose()


def test_what_is_there_already_stays_alone(filled: sa.Engine, places: tuple[str, str]) -> None:
    copy(*places)
    before = rows_of(connect(places[1]))
    with pytest.raises(EventError, match="already"):
        copy(*places)
    assert rows_of(connect(places[1])) == before


def test_a_service_that_runs(filled: sa.Engine, places: tuple[str, str]) -> None:
    with alone(filled), pytest.raises(EventError, match="another piolet-central"):
        copy(*places)
    assert not any(rows_of(connect(places[1])).values())


def test_nothing_is_there_where_it_breaks_off(
    filled: sa.Engine, places: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from piolet.central.store import copying

    whole = copying._table

    def breaks(reading: sa.Connection, writing: sa.Connection, table: sa.Table) -> int:
        if table.name == "notes":
            raise sa.exc.OperationalError("", {}, Exception("no space left"))
        return whole(reading, writing, table)

    monkeypatch.setattr(copying, "_table", breaks)
    with pytest.raises(EventError, match="cannot be copied: no space left"):
        copy(*places)
    assert not any(rows_of(connect(places[1])).values())
