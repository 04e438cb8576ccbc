"""Records as lists, of which batches are made, and back; with numbers for names."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from piolet.central.store.schema import names
from piolet.events.envelope import SEVERITIES, SOURCES, Event

_KEPT_MOST = 200_000
_FIELDS = 14
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
    if event.offset is None and is_off(measured):
        event = dataclasses.replace(event, offset=measured)
    return Stored(batch, event, received, min(event.time - (event.offset or 0.0), received))


def is_off(measured: float | None) -> bool:
    """Return whether a clock is off, by what was measured of it."""
    return measured is not None and abs(measured) > _SKEW_S


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

    def known(self, numbers: Iterable[int | None]) -> dict[int | None, str] | None:
        """Return what `look_up` does, without a look; None where not all of them are known."""
        try:
            return {None: "", **{number: self._names[number] for number in numbers if number is not None}}
        except KeyError:
            return None

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


_NAMED = (2, 5, 7, 10)  # where in a list the number of a name is


def list_of(connection: sa.Connection, named: Names, event: Event, before: int) -> list[Any]:
    """Return a record as a list, without what its batch says of all of them.

    How far its number is above `before`, time, kind, source, body, boot, severity, subject, uid, job, step, run,
    offset, fields of a later release, without the None at its end.
    """
    found = [
        event.seq - before,
        event.time,
        named.number(connection, event.kind),
        SOURCES.index(event.source),
        dict(event.body) or None,
        named.number(connection, event.boot) if event.boot else None,
        SEVERITIES.index(event.severity) if event.severity else None,
        named.number(connection, event.subject) if event.subject else None,
        event.uid,
        event.job,
        named.number(connection, event.step) if event.step else None,
        event.run,
        event.offset,
        dict(event.more) or None,
    ]
    return trimmed(found)


def trimmed(found: list[Any]) -> list[Any]:
    """Remove the None at a list's end, and return it."""
    while found[-1] is None:
        found.pop()
    return found


def names_in(records: Iterable[Sequence[Any]]) -> set[int | None]:
    """Return the numbers of names in lists of records."""
    return {record[place] for record in records for place in _NAMED if place < len(record)}


def events_of(
    records: Iterable[Sequence[Any]], first: int, cluster: str, words: Mapping[int | None, str], node: str, epoch: str
) -> Iterator[Event]:
    """Yield the records of a batch; `words` has the names of their numbers, `first` is the first one's number."""
    seq = first
    for record in records:
        whole: list[Any] = [*record, *[None] * (_FIELDS - len(record))]
        step, time, kind, source, body, boot, severity, subject, uid, job, name, run, offset, more = whole
        seq += step
        yield Event(
            cluster=cluster,
            node=node,
            epoch=epoch,
            seq=seq,
            time=time,
            kind=words[kind],
            source=SOURCES[source],
            boot=words[boot],
            severity="" if severity is None else SEVERITIES[severity],
            offset=offset,
            job=job,
            step=words[name],
            run=run,
            uid=uid,
            subject=words[subject],
            body=body or {},
            more=more or {},
        )
