"""Old months leave the data base for Parquet files, and what they say stays the same."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest
import sqlalchemy as sa
from piolet.base.errors import EventError
from piolet.central.ledger import Ledger
from piolet.central.moving import Mover
from piolet.central.store import archive, bodies
from piolet.central.store.archive import Archive
from piolet.central.store.reader import Reader
from piolet.central.store.rows import Stored
from piolet.central.store.schema import batches
from piolet.central.store.writer import Arrival, Writer

from tests.unit.central.test_store import FULL, A, event

OCTOBER = datetime.datetime(2026, 10, 3, tzinfo=datetime.UTC).timestamp()
DAY = 86400.0


class Kept:
    """A store with records of October, November and December, and what moves them."""

    def __init__(self, store: sa.Engine, place: Path) -> None:
        self.store, self.archive = store, Archive(str(place))
        self.ledger = Ledger(Writer(store, self.archive.last))
        self.ledger.start()
        self.now = OCTOBER
        self.reader = Reader(store, "alps", self.archive)
        self.mover = Mover(Reader(store, "alps"), self.ledger, self.archive, 1, lambda: self.now)

    def add(self, *records: Any, at: float, offset: float | None = None) -> None:
        self.ledger.add(Arrival("node1", records, at, {}, offset)).result()

    def all(self) -> list[Stored]:
        return list(self.reader.arrivals())

    def rows(self) -> int:
        with self.store.connect() as connection:
            runs: list[bytes] = list(connection.scalars(sa.select(batches.c.records)))
        return sum(len(bodies.unpack_run(run)) for run in runs)


@pytest.fixture
def kept(store: sa.Engine, tmp_path: Path) -> Iterator[Kept]:
    """A store of three months."""
    made = Kept(store, tmp_path / "archive")
    made.add(FULL, event(2, time=OCTOBER), at=OCTOBER + 1)
    made.add(event(3, time=OCTOBER + DAY), at=OCTOBER + DAY, offset=3600.0)
    made.add(event(4, time=OCTOBER + 35 * DAY), at=OCTOBER + 35 * DAY)
    made.add(event(5, time=OCTOBER + 70 * DAY), at=OCTOBER + 70 * DAY)
    yield made
    made.ledger.stop()


def test_nothing_is_old_yet(kept: Kept) -> None:
    kept.now = OCTOBER + 40 * DAY  # in November: October is the month before, which stays
    assert kept.mover.move() == [] and kept.rows() == 5


def test_months_move_and_say_the_same(kept: Kept) -> None:
    before = kept.all()
    kept.now = OCTOBER + 75 * DAY
    (path,) = kept.mover.move()
    assert Path(path).name.startswith("2026-10.1-") and kept.rows() == 2
    assert kept.all() == before
    assert list(kept.reader.arrivals(before[2].batch)) == before[3:]
    kept.now = OCTOBER + 110 * DAY
    assert len(kept.mover.move()) == 1 and kept.mover.move() == []
    assert kept.all() == before


def test_what_comes_after_all_has_moved_has_later_numbers(kept: Kept) -> None:
    before = kept.all()
    kept.now = OCTOBER + 200 * DAY
    kept.mover.move()
    assert kept.rows() == 0
    kept.ledger.stop()
    kept.ledger = Ledger(Writer(kept.store, kept.archive.last))
    kept.ledger.start()
    kept.add(event(6, time=OCTOBER + 200 * DAY), at=OCTOBER + 200 * DAY)
    found = kept.all()
    assert found[:-1] == before and found[-1].event.seq == 6 and found[-1].batch > before[-1].batch
    assert kept.reader.have("node1") == {A: 6}


def test_killed_between_file_and_data_base(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is there whole, the rows are too: each is read once, and the next turn goes on."""
    before = kept.all()
    kept.now = OCTOBER + 75 * DAY
    with monkeypatch.context() as patch:
        patch.setattr(archive, "removed", lambda writer, upto: 0)
        kept.mover.move()
    assert kept.rows() == 5 and kept.all() == before
    assert kept.mover.move() == [] and kept.rows() == 2 and kept.all() == before


def test_killed_while_the_file_is_written(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    before = kept.all()
    kept.now = OCTOBER + 75 * DAY
    with monkeypatch.context() as patch:
        patch.setattr(archive, "_row", lambda one: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            kept.mover.move()
    assert kept.rows() == 5 and kept.all() == before and not list(Path(kept.archive.directory).iterdir())
    assert len(kept.mover.move()) == 1 and kept.all() == before


def test_others_read_it(kept: Kept) -> None:
    kept.now = OCTOBER + 75 * DAY
    kept.mover.move()
    query = f"select kind, count(*) from '{kept.archive.directory}/*.parquet' group by kind order by kind"
    found = duckdb.execute(query).fetchall()
    assert found == [("node.heartbeat", 2), ("vet.verdict", 1)]


def test_a_file_that_is_damaged(kept: Kept) -> None:
    kept.now = OCTOBER + 75 * DAY
    (path,) = kept.mover.move()
    Path(path).write_bytes(b"PAR1")
    with pytest.raises(EventError, match="cannot be read"):
        kept.all()


@pytest.mark.parametrize(("count", "month"), [(0, "2026-10"), (1, "2026-09"), (10, "2025-12"), (22, "2024-12")])
def test_months_ago(count: int, month: str) -> None:
    assert archive.months_ago(OCTOBER, count) == month
