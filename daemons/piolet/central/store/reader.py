"""Reads the store: streams, records in the order in which they came, and what is known of a node."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from piolet.central.conclusions import OPEN
from piolet.central.store import bodies
from piolet.central.store.archive import Archive
from piolet.central.store.database import StoreError, reason
from piolet.central.store.rows import Names, Stored, events_of, names_in, stored
from piolet.central.store.schema import PART, TOLD, batches, conclusions, epochs, gaps, kept, names, notes, part
from piolet.central.store.wordings import ACKNOWLEDGED
from piolet.events.batch import RECORDS_MAX
from piolet.events.envelope import SOURCES, Event

_PIECE = 200
_SLACK_S = 60.0
BEAT = "node.heartbeat"
_BEATS_MOST, _LOOKED_MOST = 100, 20_000
"""Of a stream: heartbeats that are shown, and records that are looked at."""


@dataclass
class Latest:
    """The latest records of a node.

    events   the last one first, no more than were asked for, and of heartbeats no more than _BEATS_MOST besides
    beats    how many heartbeats there were
    whole    whether there were no others
    """

    events: list[Event] = field(default_factory=list)
    beats: int = 0
    whole: bool = True


class Reader:
    """Reads a store; in a thread of its own it needs an object of its own. What fails is a StoreError."""

    def __init__(self, engine: sa.Engine, cluster: str, archive: Archive | None = None) -> None:
        self.engine = engine
        self._archive = archive
        self.cluster = cluster
        self._named = Names()

    @contextlib.contextmanager
    def _connected(self) -> Iterator[sa.Connection]:
        """Give a connection; a data base that does not answer is a StoreError."""
        try:
            with self.engine.connect() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise StoreError(f"the store cannot be read: {reason(error)}") from None

    def have(self, node: str) -> dict[str, int]:
        """Return, by epoch, up to which number everything of a node is here, or known to be gone."""
        query = sa.select(epochs.c.epoch, epochs.c.have).join(names, names.c.id == epochs.c.node)
        query = query.where(names.c.name == node, epochs.c.own == 0)
        with self._connected() as connection:
            return {row.epoch: row.have for row in connection.execute(query)}

    def arrivals(self, after: int = 0, since: float = float("-inf"), upto: int | None = None) -> Iterator[Stored]:
        """Yield records in the order in which they came: of batches above `after`, that came at `since` or later.

        upto   the last batch; None: of all
        """
        if self._archive is not None and (archived := self._archive.last) > after:
            yield from (one for one in self._archive.arrivals(after) if one.received >= since)
            after = archived
        query = (
            sa.select(batches, epochs.c.epoch.label("hex"), epochs.c.node)
            .join(epochs, epochs.c.id == batches.c.epoch)
            .where(batches.c.id > sa.bindparam("at"), batches.c.received >= since)
            .order_by(batches.c.id)
        )
        with self._connected() as connection:
            last = upto or connection.scalar(sa.select(sa.func.max(batches.c.id))) or 0
        at = after
        while at < last:  # piece by piece, so that no transaction stays open for long
            with self._connected() as connection:
                bound = {"at": at, "upto": min(at + _PIECE, last)}
                piece = list(connection.execute(query.where(batches.c.id <= sa.bindparam("upto")), bound))
            for row in piece:
                yield from self._stored(row)
            at += _PIECE

    def _stored(self, row: Any) -> Iterator[Stored]:
        lists = bodies.unpack_run(row.records)
        numbers = names_in(lists) | {row.node}
        words = self._named.known(numbers)
        if words is None:
            with self._connected() as connection:
                words = self._named.look_up(connection, numbers)
        for event in events_of(lists, row.first, self.cluster, words, words[row.node], row.hex):
            yield stored(row.id, event, row.received, row.offset)

    def records(self, node: str, since: float, most: int, sources: Collection[str] = SOURCES) -> Latest:
        """Return the latest records of a node, of these sources. A node says every minute that it is well: what else
        it said is not to be sought among that.
        """
        found = Latest()
        with self._connected() as connection:
            number = self._named.find(connection, node)
            streams = connection.execute(sa.select(epochs).where(epochs.c.node == number, epochs.c.last >= since)).all()
            for stream in streams:
                self._latest(connection, node, stream, since, most, sources, found)
        found.events.sort(key=lambda one: (-one.time, one.epoch, -one.seq))
        others = [one for one in found.events if one.kind != BEAT]
        if len(others) > most:
            found.whole, last = False, others[most - 1]
            found.events = found.events[: found.events.index(last) + 1]
        return found

    def _latest(
        self, connection: sa.Connection, node: str, stream: Any, since: float, most: int, sources: Collection[str],
        found: Latest,
    ) -> None:  # fmt: skip
        """Add at least the last `most` records of a stream since then, or all; heartbeats are not among these."""
        beat, wanted = self._named.find(connection, BEAT), {SOURCES.index(source) for source in sources}
        beats = looked = others = 0
        for _, first, received, _, records, offset in self._backwards(connection, stream, most):
            if received + (offset or 0.0) < since - _SLACK_S:
                return  # what was sent before `since` by its node's clock has nothing that is later by it
            if others >= most or looked >= _LOOKED_MOST:
                found.whole = False
                return
            lists = bodies.unpack_run(records)
            looked += len(lists)
            if beats >= _BEATS_MOST and not [one for one in lists if one[2] != beat]:
                found.beats += len([one for one in lists if one[1] >= since])
                continue
            if not [one for one in lists if one[3] in wanted]:
                continue
            words = self._named.look_up(connection, names_in(lists))
            for one in events_of(lists, first, self.cluster, words, node, stream.epoch):
                if one.time < since or one.source not in sources:
                    continue
                others += one.kind != BEAT
                beats += one.kind == BEAT
                if one.kind != BEAT or beats <= _BEATS_MOST:
                    found.events.append(one)
                found.beats += one.kind == BEAT

    def of_node(self, node: str, since: float, until: float, most: int) -> list[Stored]:
        """Return the latest records of a node that happened in a time by the service's clock, the first one first."""
        found: list[Stored] = []
        with self._connected() as connection:
            number = self._named.find(connection, node)
            streams = connection.execute(sa.select(epochs).where(epochs.c.node == number, epochs.c.last >= since)).all()
            for stream in streams:
                own: list[Stored] = []
                for row in self._backwards(connection, stream, most):
                    if row.received < since - _SLACK_S or len(own) >= most:
                        break  # nothing comes before it happens
                    lists = bodies.unpack_run(row.records)
                    words = self._named.look_up(connection, names_in(lists))
                    events = events_of(lists, row.first, self.cluster, words, node, stream.epoch)
                    records = (stored(row.id, one, row.received, row.offset) for one in events)
                    own += [one for one in records if since <= one.at <= until]
                found += own
        return sorted(found, key=lambda one: one.at)[-most:]

    @staticmethod
    def _backwards(connection: sa.Connection, stream: Any, most: int) -> Iterator[Any]:
        """Yield the batches of a stream, the last one first: of so many parts at once as have `most` records, and more
        and more if these are not enough.
        """
        query = sa.select(batches).where(batches.c.epoch == stream.id).order_by(batches.c.first.desc())
        if stream.own:  # numbers that have gaps, and no order
            yield from connection.execute(query).all()
            return
        upto, many = stream.have // PART, most // PART + 2
        while upto >= 0:
            yield from connection.execute(query.where(part > upto - many, part <= upto)).all()
            upto, many = upto - many, 2 * many

    def record(self, node: str, epoch: str, seq: int) -> Event | None:
        """Return one record, or None."""
        with self._connected() as connection:
            number = self._named.find(connection, node)
            stream = connection.scalar(sa.select(epochs.c.id).where(epochs.c.node == number, epochs.c.epoch == epoch))
            begun = part.between((seq - RECORDS_MAX) // PART, seq // PART)
            query = sa.select(batches).where(batches.c.epoch == stream, begun, batches.c.first <= seq)
            row = connection.execute(query.order_by(batches.c.first.desc()).limit(1)).first()
            if row is None:
                return None
            lists = bodies.unpack_run(row.records)
            words = self._named.look_up(connection, names_in(lists))
        found = events_of(lists, row.first, self.cluster, words, node, epoch)
        return next((event for event in found if event.seq == seq), None)

    def conclusions(self, node: str | None = None, case: str | None = None, since: float = 0.0) -> list[bytes]:
        """Return lines of conclusions in the order in which they were drawn: all, of one node, or of one case."""
        query = sa.select(conclusions.c.body).where(conclusions.c.time >= since).order_by(conclusions.c.id)
        with self._connected() as connection:
            if node is not None:
                query = query.where(conclusions.c.node == self._named.find(connection, node))
            if case is not None:
                query = query.where(conclusions.c.case == case)
            return [bytes(row.body) for row in connection.execute(query)]

    def own(self, epoch: str, since: float) -> Iterator[Event]:
        """Yield the service's own records of streams with this epoch, of all nodes, that came at `since` or later."""
        query = (
            sa.select(batches, epochs.c.epoch.label("hex"), epochs.c.node)
            .join(epochs, epochs.c.id == batches.c.epoch)
            .where(epochs.c.epoch == epoch, epochs.c.own == 1, epochs.c.last >= since, batches.c.received >= since)
            .order_by(batches.c.id)
        )
        with self._connected() as connection:
            rows = connection.execute(query).all()
        for row in rows:
            yield from (one.event for one in self._stored(row))

    def gaps(self, node: str) -> list[dict[str, Any]]:
        """Return which records of a node are not here and never will be."""
        query = (
            sa.select(epochs.c.epoch.label("hex"), gaps.c.first, gaps.c.last, gaps.c.time, gaps.c.why)
            .join(epochs, epochs.c.id == gaps.c.epoch)
            .join(names, names.c.id == epochs.c.node)
            .where(names.c.name == node)
            .order_by(gaps.c.id)
        )
        with self._connected() as connection:
            return [
                {"epoch": row.hex, "first": row.first, "last": row.last, "time": row.time, "why": row.why}
                for row in connection.execute(query)
            ]

    def notes(self, node: str | None = None, case: str | None = None) -> list[dict[str, Any]]:
        """Return what people wrote of a node or of a case, the first first."""
        query = sa.select(notes).order_by(notes.c.id)
        with self._connected() as connection:
            if node is not None:
                query = query.where(notes.c.node == self._named.find(connection, node))
            if case is not None:
                query = query.where(notes.c.case == case)
            rows = connection.execute(query).all()
        return [{key: getattr(row, key) for key in ("time", "kind", "case", "uid", "text")} for row in rows]

    def acknowledged(self, rules: Collection[str]) -> dict[str, float]:
        """Return, by node, when the latest case of one of these rules was opened that staff has acknowledged."""
        query = (
            sa.select(names.c.name, sa.func.max(conclusions.c.time).label("time"))
            .join(conclusions, conclusions.c.node == names.c.id)
            .join(notes, notes.c.case == conclusions.c.case)
            .where(notes.c.kind == ACKNOWLEDGED, conclusions.c.state == OPEN, conclusions.c.rule.in_(rules))
            .group_by(names.c.name)
        )
        with self._connected() as connection:
            return {row.name: row.time for row in connection.execute(query)}

    def nodes(self) -> dict[str, float | None]:
        """Return when something last came from each node itself; None: of it others alone have spoken."""
        own = sa.case((epochs.c.own == 0, epochs.c.last))
        query = (
            sa.select(names.c.name, sa.func.max(own).label("last"))
            .join(epochs, epochs.c.node == names.c.id)
            .group_by(names.c.name)
        )
        with self._connected() as connection:
            return {row.name: row.last for row in connection.execute(query)}

    def counted(self) -> dict[str, int]:
        """Return how much there is: records that came, those that never will, batches, conclusions.

        lost, dropped   how many records nodes said that they lost before they were delivered (most of them are among
                        `gone`, but for streams of which nothing is left), and that they did not write
        """
        came = sa.select(sa.func.coalesce(sa.func.sum(epochs.c.have), 0))
        lost = sa.select(sa.func.coalesce(sa.func.sum(gaps.c.last - gaps.c.first + 1), 0))
        with self._connected() as connection:
            gone = int(connection.scalar(lost) or 0)
            told = {row.name: int(row.value) for row in connection.execute(sa.select(kept))}
            return {
                "records": int(connection.scalar(came) or 0) - gone,
                "gone": gone,
                "lost": told.get(TOLD["spool.lost"], 0),
                "dropped": told.get(TOLD["spool.dropped"], 0),
                "batches": connection.scalar(sa.select(sa.func.count()).select_from(batches)) or 0,
                "conclusions": connection.scalar(sa.select(sa.func.count()).select_from(conclusions)) or 0,
            }
