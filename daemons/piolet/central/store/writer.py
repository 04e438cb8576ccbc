"""Adds to the store, as its one writer. What came together is there as a whole, each record once, or not at all.

A stream's records come in order. One that is here already is left out; where one is missing that its node still has,
nothing of that stream is taken (the node begins again from what the answer says is here); where its node says that it
is gone, that is written down.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from piolet.base.errors import EventError
from piolet.central.store import bodies
from piolet.central.store.database import StoreError, reason
from piolet.central.store.rows import Names, Stored, is_off, list_of, stored
from piolet.central.store.schema import PART, TOLD, batches, epochs, gaps, kept, part
from piolet.events.envelope import Event

_STREAMS_MOST = 200_000


@dataclass(frozen=True)
class Refused:
    """A record that is not kept; its number is passed over."""

    epoch: str
    seq: int
    why: str


@dataclass(frozen=True)
class Arrival:
    """A batch, as it is to be kept.

    records   of one node, each stream's in order
    gone      epoch -> the number up to which its node has no records any more
    offset    how far the node's clock is ahead; None: not known
    """

    node: str
    records: Sequence[Event | Refused]
    received: float
    gone: Mapping[str, int] = field(default_factory=dict)
    offset: float | None = None


@dataclass
class Taken:
    """What became of a batch.

    have      epoch -> the number up to which everything of it is here or known to be gone, of the streams of the batch
    missing   whether something was not taken, since records before it are missing
    stored    what is new, in order
    """

    have: dict[str, int] = field(default_factory=dict)
    missing: bool = False
    stored: list[Stored] = field(default_factory=list)


@dataclass
class _Stream:
    number: int
    have: int
    own: bool
    written: int  # what of `have` the data base knows


class Writer:
    """The one writer of a store.

    after   batches get numbers above it: those up to it are archived
    """

    def __init__(self, engine: sa.Engine, after: int = 0) -> None:
        self.engine = engine
        self._after = after
        self.named = Names()
        self._streams: dict[tuple[str, str], _Stream] = {}
        self._next: int | None = None
        self._last = 0

    def append(self, arrivals: Sequence[Arrival]) -> list[Taken]:
        """Add batches, in one transaction; return what became of each. Raises EventError: none of them is kept."""
        with self._transaction() as work:
            return [self._take(work, arrival) for arrival in arrivals]

    def take_own(self, records: Sequence[Event], received: float) -> list[Stored]:
        """Add records that the service itself makes, whose numbers have no order; return those that are new.

        Raises EventError: none of them is kept.
        """
        found: list[Stored] = []
        by_stream: dict[tuple[str, str], dict[int, Event]] = {}
        for one in records:
            by_stream.setdefault((one.node, one.epoch), {})[one.seq] = one
        with self._transaction() as work:
            for (node, epoch), by_number in by_stream.items():
                found += self._take_own(work, node, epoch, by_number, received)
        return found

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[_Work]:
        """Let records be added, all or none. Raises StoreError."""
        try:
            with self.engine.begin() as connection:
                work = _Work(connection, self._number(connection))
                yield work
                work.finish()
            self._next, self._last = work.next, work.next - 1
        except BaseException as error:
            self.forget()
            if isinstance(error, SQLAlchemyError):
                raise StoreError(f"the store does not take records: {reason(error)}") from None
            raise

    def _take_own(
        self, work: _Work, node: str, epoch: str, by_number: dict[int, Event], received: float
    ) -> list[Stored]:
        stream = self._stream(work.connection, node, epoch, received, own=True)
        known: set[int] = set()
        numbers = sorted(by_number)
        for start in range(0, len(numbers), 500):
            parts = {number // PART for number in numbers[start : start + 500]}
            query = sa.select(batches.c.first).where(batches.c.epoch == stream.number, part.in_(parts))
            known |= set(work.connection.scalars(query))
        found = []
        for seq in (one for one in by_number if one not in known):
            found += work.close(stream, self.named, [by_number[seq]], received, None)
        if found:
            stream.have += len(found)
            work.seen(stream, received)
        return found

    def forget(self) -> None:
        """Forget what was read: a transaction was undone, or it is not known whether it was."""
        self.named.forget()
        self._streams.clear()
        self._next = None

    def _number(self, connection: sa.Connection) -> int:
        if self._next is None:
            last = connection.scalar(sa.select(sa.func.max(batches.c.id)))
            self._next = max(last or 0, self._after, self._last) + 1
        return self._next

    def _take(self, work: _Work, arrival: Arrival) -> Taken:
        taken = Taken()
        by_epoch: dict[str, list[Event | Refused]] = {epoch: [] for epoch in arrival.gone}
        for one in arrival.records:
            by_epoch.setdefault(one.epoch, []).append(one)
        for epoch, records in by_epoch.items():
            stream = self._stream(work.connection, arrival.node, epoch, arrival.received)
            if stream.own:
                raise EventError(f"the epoch {epoch} is the central service's own")
            upto = arrival.gone.get(epoch, 0)
            if upto > stream.have:
                work.gap(stream, stream.have + 1, upto, "its node has it no more", arrival.received)
                stream.have = upto
            run: list[Event] = []
            for one in records:
                if one.seq <= stream.have:
                    continue
                if one.seq != stream.have + 1:
                    taken.missing = True
                    break
                stream.have = one.seq
                if isinstance(one, Refused):
                    work.gap(stream, one.seq, one.seq, one.why, arrival.received)
                else:
                    run.append(one)
            taken.stored += work.close(stream, self.named, run, arrival.received, arrival.offset)
            work.count(run)
            taken.have[epoch] = stream.have
            work.seen(stream, arrival.received)
        return taken

    def _stream(self, connection: sa.Connection, name: str, epoch: str, received: float, own: bool = False) -> _Stream:
        key = (name, epoch)
        if key not in self._streams:
            if len(self._streams) > _STREAMS_MOST:
                self._streams.clear()
            node = self.named.number(connection, name)
            query = sa.select(epochs).where(epochs.c.node == node, epochs.c.epoch == epoch)
            row = connection.execute(query).first()
            if row is None:
                new = {"node": node, "epoch": epoch, "have": 0, "first": received, "last": received, "own": int(own)}
                number = connection.scalar(sa.insert(epochs).values(new).returning(epochs.c.id))
                assert number is not None
                self._streams[key] = _Stream(number, 0, own, 0)
            else:
                self._streams[key] = _Stream(row.id, row.have, bool(row.own), row.have)
        return self._streams[key]


_SEEN = (
    sa.update(epochs)
    .where(epochs.c.id == sa.bindparam("of"), epochs.c.have == sa.bindparam("before"))
    .values(have=sa.bindparam("upto"), last=sa.bindparam("when"))
)


class _Work:
    """One transaction: rows that are written together at its end."""

    def __init__(self, connection: sa.Connection, number: int) -> None:
        self.connection = connection
        self.next = number
        self._batches: list[dict[str, Any]] = []
        self._gaps: list[dict[str, Any]] = []
        self._seen: dict[int, tuple[_Stream, float]] = {}
        self._told: Counter[str] = Counter()

    def close(
        self, stream: _Stream, named: Names, run: Sequence[Event], received: float, offset: float | None
    ) -> list[Stored]:
        """Note records of one stream as one batch."""
        if not run:
            return []
        before = (run[0].seq, *(event.seq for event in run))
        lists = [list_of(self.connection, named, event, seq) for event, seq in zip(run, before, strict=False)]
        self._batches.append({
            "id": self.next, "epoch": stream.number, "first": run[0].seq, "received": received,
            "offset": offset if is_off(offset) else None, "records": bodies.pack_run(lists),
        })  # fmt: skip
        self.next += 1
        return [stored(self.next - 1, event, received, offset) for event in run]

    def gap(self, stream: _Stream, first: int, last: int, why: str, when: float) -> None:
        """Note that records of a stream will never be here."""
        before = self._gaps[-1] if self._gaps else None
        if before and (before["epoch"], before["last"], before["why"]) == (stream.number, first - 1, why):
            before["last"] = last
            return
        self._gaps.append({"epoch": stream.number, "first": first, "last": last, "why": why[:500], "time": when})

    def count(self, run: Sequence[Event]) -> None:
        """Note what a node says that it lost, or never wrote."""
        for event in run:
            if event.kind in TOLD and type(event.body.get("records")) is int:
                self._told[TOLD[event.kind]] += max(0, event.body["records"])

    def seen(self, stream: _Stream, when: float) -> None:
        """Note up to where a stream is here."""
        self._seen[stream.number] = (stream, when)

    def finish(self) -> None:
        """Write it all. Raises StoreError: another process has written to one of the streams."""
        if self._seen:
            self._see()
        for table, rows in ((batches, self._batches), (gaps, self._gaps)):
            if rows:
                self.connection.execute(sa.insert(table), rows)
        for name, records in self._told.items():
            more = sa.update(kept).where(kept.c.name == name).values(value=kept.c.value + records)
            if not self.connection.execute(more).rowcount:
                self.connection.execute(sa.insert(kept).values(name=name, value=records))

    def _see(self) -> None:
        """Write up to where streams are here, where they are as far as was known: so no record is here twice."""
        seen = [
            {"of": stream.number, "before": stream.written, "upto": stream.have, "when": when}
            for stream, when in self._seen.values()
        ]
        if self.connection.execute(_SEEN, seen).rowcount != len(seen):
            raise StoreError("another process writes to the store", "systemctl status piolet-central, on all machines")
        for stream, _ in self._seen.values():
            stream.written = stream.have
