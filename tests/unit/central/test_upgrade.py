"""Stores of former releases: what they have is there afterwards, and once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from piolet.base.errors import EventError
from piolet.central.store import database
from piolet.central.store.database import connect
from piolet.central.store.reader import Reader
from piolet.central.store.writer import Arrival, Writer
from piolet.events.envelope import encode

from tests.unit.central.test_store import A, event

RECORDED = Path(__file__).parent / "recorded"


@pytest.fixture
def said() -> dict[str, Any]:
    """What the release before wrote, table by table, and what it read of that."""
    found: dict[str, Any] = json.loads((RECORDED / "store-0001.json").read_text())
    # The kinds' bodies are at random there, and this one is to be a node's word.
    body = json.dumps({"records": 5}, separators=(",", ":"))
    (kind,) = (row["id"] for row in found["tables"]["names"] if row["name"] == "spool.lost")
    (lost,) = (row for row in found["tables"]["events"] if row["kind"] == kind)
    lost["body"] = {"hex": (b"\x00" + body.encode()).hex()}
    for one in found["arrivals"]:
        line = json.loads(one[4])
        if line["kind"] == "spool.lost":
            one[4] = json.dumps({**line, "body": {"records": 5}}, separators=(",", ":"))
    return found


def _old(url: str, said: dict[str, Any]) -> None:
    """Make a store of revision 0001 with these rows."""
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        config = Config()
        config.set_main_option("script_location", str(Path(database.__file__).parent / "migrations"))
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        tables = sa.MetaData()
        tables.reflect(connection)
        for table in tables.sorted_tables:
            rows = [
                {key: bytes.fromhex(value["hex"]) if isinstance(value, dict) else value for key, value in row.items()}
                for row in said["tables"].get(table.name, ())
            ]
            if rows:
                connection.execute(sa.insert(table), rows)
            if rows and "id" in table.c and table.name != "batches" and engine.dialect.name == "postgresql":
                most = max(row["id"] for row in rows)
                connection.execute(sa.select(sa.func.setval(f"{table.name}_id_seq", most)))
    engine.dispose()


@pytest.mark.parametrize("apart", [1, 150], ids=["in one piece", "in pieces"])
def test_nothing_is_lost_and_nothing_is_there_twice(url: str, said: dict[str, Any], apart: int) -> None:
    for row in said["tables"]["batches"]:
        row["id"] *= apart
    for one in said["arrivals"]:
        one[0] *= apart
    _old(url, said)
    with pytest.raises(EventError, match="of another release"):
        connect(url)
    store = connect(url, create=True)
    reader = Reader(store, "alps")
    found = [
        [one.batch, one.received, one.at, one.event.offset, encode(one.event).decode().strip()]
        for one in reader.arrivals()
    ]
    assert found == said["arrivals"] and len(found) == 31
    assert reader.counted() == said["counted"] | {"lost": 5, "dropped": 0} and reader.have("node1") == said["have"]
    assert len(reader.gaps("node1")) == 2 and len(reader.notes("node1")) == 1 and len(reader.conclusions()) == 1
    for one in said["arrivals"]:
        line = json.loads(one[4])
        record = reader.record(line["node"], line["epoch"], line["seq"])
        assert record is not None and record.kind == line["kind"]
    # It goes on where it was.
    (taken,) = Writer(store).append([Arrival("node1", [event(9), event(10), event(11)], 1.7e9 + 100)])
    assert taken.have == {A: 11} and [one.event.seq for one in taken.stored] == [11]
    assert sum(1 for _ in reader.arrivals()) == 32
    store.dispose()


def test_a_store_without_records(url: str) -> None:
    _old(url, {"tables": {}})
    store = connect(url, create=True)
    assert list(Reader(store, "alps").arrivals()) == []
    store.dispose()
