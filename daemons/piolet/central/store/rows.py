"""Records as rows and back, with numbers for names."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from piolet.central.store import bodies
from piolet.central.store.schema import names
from piolet.events.envelope import SEVERITIES, SOURCES, Event

_KEPT_MOST = 200_000
_SKEW_S = 5.0  # below it, what was measured is the way of the message as much as the clock


@dataclass(frozen=True)
class Stored:
    """A record of the store.

    batch   the number of the batch that it came in: with (epoch, seq), its place in the order of all
    at      when it happened, by the service's clock: the record's time less the offset of its node's clock, and never
            later than it came
    """

    batch: int
    event: Event
    received: float
    at: float


def stored(batch: int, event: Event, received: float, measured: float | None) -> Stored:
    """Return a record with the offset that was measured when it was sent, where it says none of its own."""
    if event.offset is None and measured is not None and abs(measured) > _SKEW_S:
        event = dataclasses.replace(event, offset=measured)
    return Stored(batch, event, received, min(event.time - (event.offset or 0.0), received))


class Names:
    """The table `names`, of which it remembers what was asked for."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}
        self._names: dict[int, str] = {}

    def forget(self) -> None:
        """Forget everything: a transaction that may have made names was undone."""
        self._ids.clear()
        self._names.clear()

    def find(self, connection: sa.Connection, name: str) -> int | None:
        """Return the number of a name that may be there."""
        if name not in self._ids:
            found = connection.scalar(sa.select(names.c.id).where(names.c.name == name))
            if found is None:
                return None
            self._remember(found, name)
        return self._ids[name]

    def number(self, connection: sa.Connection, name: str) -> int:
        """Return the number of a name, which is made where it is new."""
        found = self._ids.get(name) or self.find(connection, name)
        if found is None:
            found = connection.scalar(sa.insert(names).values(name=name).returning(names.c.id))
            assert found is not None
            self._remember(found, name)
        return found

    def look_up(self, connection: sa.Connection, numbers: Iterable[int | None]) -> dict[int | None, str]:
        """Return number -> name, '' for None."""
        wanted = set(numbers) - {None}
        missing = [number for number in wanted if number not in self._names]
        for start in range(0, len(missing), 500):
            rows = connection.execute(sa.select(names).where(names.c.id.in_(missing[start : start + 500])))
            for row in rows:
                self._remember(row.id, row.name)
        return {None: "", **{number: self._names[number] for number in wanted if number is not None}}

    def _remember(self, number: int, name: str) -> None:
        if len(self._ids) > _KEPT_MOST or len(self._names) > _KEPT_MOST:
            self.forget()
        self._ids[name] = number
        self._names[number] = name


def row_of(connection: sa.Connection, named: Names, epoch: int, event: Event) -> dict[str, Any]:
    """Return the row of a record in the stream with the number `epoch`."""
    return {
        "epoch": epoch,
        "seq": event.seq,
        "time": event.time,
        "kind": named.number(connection, event.kind),
        "uid": event.uid,
        "job": event.job,
        "offset": event.offset,
        "subject": named.number(connection, event.subject) if event.subject else None,
        "step": named.number(connection, event.step) if event.step else None,
        "boot": named.number(connection, event.boot) if event.boot else None,
        "run": event.run,
        "source": SOURCES.index(event.source),
        "severity": SEVERITIES.index(event.severity) if event.severity else None,
        "body": bodies.pack(event.body),
    }


def event_of(row: Any, cluster: str, words: dict[int | None, str], node: str, epoch: str) -> Event:
    """Return the record in a row of `events`; `words` has the names of its numbers."""
    return Event(
        cluster=cluster,
        node=node,
        epoch=epoch,
        seq=row.seq,
        time=row.time,
        kind=words[row.kind],
        source=SOURCES[row.source],
        boot=words[row.boot],
        severity="" if row.severity is None else SEVERITIES[row.severity],
        offset=row.offset,
        job=row.job,
        step=words[row.step],
        run=row.run,
        uid=row.uid,
        subject=words[row.subject],
        body=bodies.unpack(row.body),
    )
