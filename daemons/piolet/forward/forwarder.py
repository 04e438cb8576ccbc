"""Takes records from a node's spool to the central service, each stream in order, one batch at a time.

What the service says it has is believed, upwards and downwards: one that was restored from a backup has less than it
said, and gets the rest again. Nothing is kept here but these numbers; a forwarder that was killed asks for them.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from piolet.base.errors import EventError, PioletError
from piolet.events import batch
from piolet.events.envelope import FATAL, WARN, LaterError, decode, number_of
from piolet.forward import acknowledged
from piolet.transport.asking import Answer, CentralError

_LOG = logging.getLogger("piolet-forward")
_BYTES_MOST = 4 << 20
_GONE_MOST = 30  # of streams whose records are gone, in one request's target
_LOOK_S = 1.0
_ASK_EVERY_S = 3600.0
_WAIT_LEAST_S, _WAIT_MOST_S = 1.0, 300.0
_OFFSET_TOLD_S = 30.0
_MISSING = 409
_BEAT = b'"kind":"node.heartbeat"'


class Spool(Protocol):
    """What is read of a node's spool: piolet.events.reader.Reader."""

    def streams(self) -> dict[str, int]:
        """Return, by epoch, the number of the last record. Raises OSError."""

    def read(self, epoch: str, after: int, records_max: int, bytes_max: int) -> list[bytes]:
        """Return lines with numbers above `after`, in order; they may begin later than at `after` + 1."""


class Service(Protocol):
    """What is asked: piolet.transport.asking.Asker."""

    def ask(
        self, method: str, target: str, body: bytes = b"", *, cluster: str = "", node: str = "", kind: str = ""
    ) -> Answer:
        """Return the answer. Raises PioletError."""


@dataclass(frozen=True)
class Kind:
    """What is forwarded.

    target     where it goes
    name       the file that says what was taken
    urgent     whether somebody may wait for a record; None: for none of these
    said       what the target says besides
    """

    target: str = "/v1/events"
    name: str = acknowledged.NAME
    urgent: Callable[[bytes], bool] | None = None
    said: Callable[[], Mapping[str, str]] = dict


@dataclass
class _Batch:
    lines: list[bytes] = field(default_factory=list)
    gone: dict[str, int] = field(default_factory=dict)
    size: int = 0

    def target(self, kind: Kind) -> str:
        gone = ",".join(f"{epoch}:{upto}" for epoch, upto in self.gone.items())
        said = {**({"gone": gone} if gone else {}), **kind.said()}
        query = "&".join(f"{name}={value}" for name, value in said.items())
        return f"{kind.target}?{query}" if query else kind.target


class Forwarder:
    """Forwards one spool to one service.

    every_s  after so long records are sent that nobody waits for; others within a second or so
    beats_s  after so long heartbeats are sent where nothing else is new: several in one batch take far less than alone
    offset   how far this node's clock is ahead of the service's, in seconds; None: not measured yet
    """

    def __init__(
        self,
        spool: Spool,
        service: Service,
        state: str,
        every_s: float,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
        kind: Kind | None = None,
        beats_s: float = 0.0,
    ) -> None:
        self._kind = kind or Kind(urgent=is_urgent)
        self._beats_s = max(every_s, beats_s)
        self._spool, self._service, self._state, self._every_s = spool, service, state, every_s
        self._clock, self._rng = clock, rng or random.Random()  # noqa: S311 - it spreads nodes in time
        self._have = acknowledged.load(state, self._kind.name)
        self._written = dict(self._have)
        self._asked = float("-inf")
        self._next = self._next_beats = float("-inf")  # when what is not urgent is sent; when heartbeats are
        self._looked: dict[str, int] = {}
        self._beats_alone = True  # nothing but heartbeats is new
        self._name: tuple[str, str] | None = None
        self._failures = 0
        self._told = ""
        self.offset: float | None = None

    def turn(self) -> float:
        """Look for new records once, and send at most one batch; return after how many seconds to look again."""
        try:
            more = self._turn()
        except (PioletError, OSError) as error:
            self._failures += 1
            self._tell(error)
            most = min(_WAIT_MOST_S, _WAIT_LEAST_S * 2 ** min(self._failures, 20))
            return self._rng.uniform(most / 2, most)
        if self._failures:
            _LOG.info("the central service takes records again")
        self._failures, self._told = 0, ""
        return 0.0 if more else _LOOK_S * self._rng.uniform(0.8, 1.2)

    def _tell(self, error: PioletError | OSError) -> None:
        """Log a failure, once as long as it is the same."""
        text = (
            error.render() if isinstance(error, PioletError) else f"{error.filename or 'the spool'}: {error.strerror}"
        )
        if text != self._told:
            self._told = text
            for line in text.splitlines():
                _LOG.warning("%s", line)

    def _turn(self) -> bool:
        streams = self._spool.streams()
        if not streams:
            return False
        if self._clock() - self._asked > _ASK_EVERY_S:
            self._ask(streams)
        due = self._is_urgent(streams) or self._clock() >= (self._next_beats if self._beats_alone else self._next)
        if not due:
            return False
        found, more = self._collect(streams)
        if not found.lines and not found.gone:
            return False
        cluster, node = self._identity(streams)
        try:
            body = batch.pack(found.lines) if found.lines else b""
            answer = self._service.ask(
                "POST", found.target(self._kind), body, cluster=cluster, node=node, kind="application/gzip"
            )
        except CentralError as error:
            if error.status != _MISSING:
                raise
            self._ask(streams)  # it has less than it said: it was restored from a backup
            return True
        self._believe(answer, streams)
        self._beats_alone = not more
        spread = 0.0 if more else self._rng.uniform(0.8, 1.2)
        self._next = self._clock() + spread * self._every_s
        self._next_beats = self._clock() + spread * self._beats_s
        return more

    def _is_urgent(self, streams: dict[str, int]) -> bool:
        """Return whether there is a new record that somebody may wait for: a fault, or a task that ended badly."""
        urgent = False
        if self._kind.urgent is None:
            return sum(last - self._have.get(epoch, 0) for epoch, last in streams.items()) >= batch.RECORDS_MAX
        for epoch, last in streams.items():
            seen = max(self._have.get(epoch, 0), self._looked.get(epoch, 0))
            if last > seen:
                lines = self._spool.read(epoch, seen, batch.RECORDS_MAX, _BYTES_MOST)
                urgent = urgent or len(lines) == batch.RECORDS_MAX or any(map(self._kind.urgent, lines))
                self._beats_alone = self._beats_alone and all(_BEAT in line for line in lines)
        self._looked = streams
        return urgent

    def _ask(self, streams: dict[str, int]) -> None:
        """Ask what the service has of everything."""
        cluster, node = self._identity(streams)
        answer = self._service.ask("POST", self._kind.target, cluster=cluster, node=node)
        self._have = {}
        self._asked = self._clock()
        self._believe(answer, streams)

    def _believe(self, answer: Answer, streams: dict[str, int]) -> None:
        for epoch, seq in acknowledged.numbers(answer.said.get("have")).items():
            if epoch not in streams:
                continue
            if seq > streams[epoch] and seq > (written := self._spool.streams().get(epoch, 0)):
                _LOG.error(
                    "the central service has record %d of stream %s, of which this node has written %d: was this node's"
                    " disk put back to an earlier state? Remove its spool, so that a new stream begins",
                    seq, epoch, written,
                )  # fmt: skip
            self._have[epoch] = seq
        self._have = {epoch: seq for epoch, seq in self._have.items() if epoch in streams}
        if self._have != self._written:
            acknowledged.store(self._state, self._have, self._kind.name)
            self._written = dict(self._have)
        if abs(answer.offset) > _OFFSET_TOLD_S and (self.offset is None or abs(self.offset) <= _OFFSET_TOLD_S):
            _LOG.warning("this node's clock is %.0f s ahead of the central service's", answer.offset)
        self.offset = answer.offset

    def _collect(self, streams: dict[str, int]) -> tuple[_Batch, bool]:
        """Return the next batch, and whether there is more behind it."""
        found = _Batch()
        for epoch, last in sorted(streams.items(), key=lambda one: one[1] - self._have.get(one[0], 0)):
            have = self._have.get(epoch, 0)
            if last <= have:
                continue
            room = batch.RECORDS_MAX - len(found.lines)
            if room <= 0 or found.size >= _BYTES_MOST or len(found.gone) >= _GONE_MOST:
                return found, True
            last_sent = self._add(found, epoch, have, room)
            if last_sent < last:
                return found, True
        return found, False

    def _add(self, found: _Batch, epoch: str, have: int, room: int) -> int:
        """Add what follows in a stream; return the number of the last record that is then settled."""
        settled, sent = have, False
        for line in self._spool.read(epoch, have, room, _BYTES_MOST - found.size):
            number = number_of(line)
            if number is None:
                continue
            if not self._is_right(line, number[0]):
                if sent:
                    return settled
                found.gone[epoch] = settled = number[1]
                continue
            if number[1] != settled + 1:
                if sent:
                    return settled  # what follows upon a hole goes with the next batch
                found.gone[epoch] = number[1] - 1
            found.lines.append(line)
            found.size += len(line)
            settled, sent = number[1], True
        return settled

    def _is_right(self, line: bytes, epoch: str) -> bool:
        try:
            event = decode(line)
        except LaterError:
            raise  # it is not lost: this process is older than who wrote it
        except EventError as error:
            _LOG.error("a record of stream %s is damaged and is not sent: %s", epoch, error.message)
            return False
        name = (event.cluster, event.node)
        if self._name is None:
            self._name = name
        return name == self._name

    def _identity(self, streams: dict[str, int]) -> tuple[str, str]:
        """Return cluster and node, as the newest record says."""
        if self._name is None:
            for epoch, last in streams.items():
                for line in self._spool.read(epoch, last - 1, 1, _BYTES_MOST):
                    self._is_right(line, epoch)
        if self._name is None:
            raise EventError("no record of the spool says which node this is")
        return self._name


def is_urgent(line: bytes) -> bool:
    """Return whether a record is one that somebody may wait for."""
    try:
        event = decode(line)
    except EventError:
        return False
    if event.kind == "step.outcome":
        return (event.body.get("why"), event.body.get("status")) != ("exit", 0)
    return event.severity in (FATAL, WARN)
