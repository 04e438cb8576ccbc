"""A node's events on its disk, for the forwarder to take to the central service (decision 104).

Records are taken in a loop that must not wait, and written in a thread: a disk that is slow, full or hung costs
records, which are counted, and nothing else. Those that have a uid are in a stream of that user's, and within a share
of their own: nobody pushes out what was found for another. What a share did not hold, and what a bound removed before
it was delivered, is told in the node's own stream.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from piolet.base.errors import EventError
from piolet.base.rates import Rates
from piolet.events.envelope import ROOT, UNNUMBERED, Event, encode
from piolet.events.room import Bounds, Loss, Room
from piolet.events.stream import Stream, Writer

_log = logging.getLogger("pioletd")

BYTES_AT_ONCE, BYTES_A_SECOND = 512 * 1024, 8 * 1024
LINES_AT_ONCE, LINES_A_SECOND = 1024, 20
WAITING_MAX = 4096
TELL_S, TELL_NEXT_S, TELL_MAX_S = 2.0, 60.0, 300.0
_AT_ONCE = 256
_STREAMS_MAX = 1024
_AGAIN_S = 1.0
_LOOK_S = 60.0
_LOG_S = 10.0
_SHARE = "the share of a user"


class Chore(Protocol):
    """Something else that writes to the disk, and whose turn the spool's thread gives it."""

    @property
    def due(self) -> float:
        """When, by time.monotonic()."""

    def save(self, now: float) -> None:
        """Do it, if it is due. Raises OSError."""


class Spool:
    """The streams in `directory`, as `writer`. `put` and `drop` are for one thread.

    about         what node.start says of this daemon
    acknowledged  the forwarder's file of what was delivered
    sync_users    users' streams are synced after each write as well: where it is not they who say when one is
    """

    def __init__(
        self, directory: str, writer: Writer, about: Mapping[str, Any], acknowledged: str = "",
        bounds: Bounds | None = None, chore: Chore | None = None, sync_users: bool = False,
    ) -> None:  # fmt: skip
        self._directory = directory
        self._writer = writer
        self._about = about
        self._waiting: queue.Queue[tuple[int | None, bytes] | None] = queue.Queue(WAITING_MAX)
        self._bytes = Rates(BYTES_A_SECOND, BYTES_AT_ONCE)
        self._lines = Rates(LINES_A_SECOND, LINES_AT_ONCE)
        self._lock = threading.Lock()
        self._dropped: dict[tuple[int | None, str], tuple[int, int]] = {}
        self._told: dict[int | None, tuple[float, float]] = {}
        self._losses: list[Loss] = []
        self._streams: dict[int | None, Stream] = {}
        self._room = Room(directory, acknowledged, bounds or Bounds(), self._tell_loss)
        self._look = 0.0
        self._chore = chore
        self._sync_users = sync_users
        self._complained = float("-inf")
        self._stop = False
        self._thread = threading.Thread(target=self._run, name="spool", daemon=True)
        self._thread.start()

    def put(
        self, kind: str, source: str, *, at: float | None = None, severity: str = "", job: int | None = None,
        step: str = "", run: int | None = None, uid: int | None = None, subject: str = "",
        body: Mapping[str, Any] | None = None,
    ) -> bool:  # fmt: skip
        """Take a record. Never waits, and raises nothing: what is no record, or too much, is counted.

        Returns whether it was taken, which is not yet written.
        """
        try:
            line = self._line(
                kind, source, at=at, severity=severity, job=job, step=step, run=run, uid=uid, subject=subject,
                body=body or {},
            )  # fmt: skip
        except EventError as error:
            self._complain(f"an event is dropped: {error.message}")
            self.drop(uid, 1, 0, "no record")
            return False
        if not self._lines.take(uid) or not self._bytes.take(uid, len(line)):
            self.drop(uid, 1, len(line), _SHARE)
            return False
        try:
            self._waiting.put_nowait((uid, line))
        except queue.Full:
            self.drop(uid, 1, len(line), "the disk is slow")
            return False
        return True

    def drop(self, uid: int | None, records: int, size: int, why: str = _SHARE) -> None:
        """Count what is not written of a user's, or of the node's own."""
        with self._lock:
            before = self._dropped.get((uid, why), (0, 0))
            self._dropped[uid, why] = before[0] + records, before[1] + size
            self._told.setdefault(uid, (time.monotonic() + TELL_S, TELL_S))
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(None)  # so that it is told

    def flush(self, within_s: float = 2.0) -> None:
        """Wait until everything is written, at most so long."""
        deadline = time.monotonic() + within_s
        while self._waiting.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.01)

    def close(self, within_s: float = 2.0) -> None:
        """Write all, with what is not told yet, and end the thread; wait at most so long."""
        self._stop = True
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(None)
        self._thread.join(within_s)

    # -- in the thread

    def _run(self) -> None:
        self._try(self._begin)
        while True:
            batch = self._next()
            self._try(self._write, batch)
            for _ in batch:
                self._waiting.task_done()
            stop = self._stop and self._waiting.empty()
            self._try(self._tell, stop)
            if time.monotonic() >= self._look:
                self._look = time.monotonic() + _LOOK_S
                self._try(self._make_room)
            if self._chore is not None:
                self._try(self._chore.save, time.monotonic())
            if stop:
                return

    def _begin(self) -> None:
        try:
            stream = self._stream(None)
            body = {**self._about, "before": stream.before} if stream.before else dict(self._about)
            stream.append([self._line("node.start", ROOT, body=body)])
        except OSError as error:
            self._fail(error)
            self.drop(None, 1, 0, "the disk")

    def _try(self, what: Callable[..., None], *arguments: Any) -> None:
        """Do it; what fails for the disk is logged, and not too often."""
        try:
            what(*arguments)
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        self._complain(f"events are not spooled in {self._directory}: {error.strerror}")

    def _complain(self, text: str) -> None:
        """Say it in the log, and no other for a while: what follows is counted in records."""
        now = time.monotonic()
        if now >= self._complained + _LOG_S:
            self._complained = now
            _log.error("%s", text)

    def _next(self) -> list[tuple[int | None, bytes] | None]:
        due = [self._look] + ([self._chore.due] if self._chore is not None else [])
        with self._lock:
            due += [when for when, _ in self._told.values()]
        batch = []
        with contextlib.suppress(queue.Empty):
            batch.append(self._waiting.get(timeout=max(0.0, min(min(due) - time.monotonic(), _LOOK_S))))
            while len(batch) < _AT_ONCE:
                batch.append(self._waiting.get_nowait())
        return batch

    def _write(self, batch: list[tuple[int | None, bytes] | None]) -> None:
        streams: dict[int | None, list[bytes]] = {}
        for one in batch:
            if one is not None:
                streams.setdefault(one[0], []).append(one[1])
        failed: OSError | None = None
        for uid, lines in streams.items():
            done = 0
            try:
                done = self._append(uid, lines)
                failed = failed if done == len(lines) else OSError(28, os.strerror(28))
            except OSError as error:
                failed = error
            if done < len(lines):
                self.drop(uid, len(lines) - done, sum(map(len, lines[done:])), "the disk")
        if failed is not None:
            self._fail(failed)
            time.sleep(0.0 if self._stop else _AGAIN_S)

    def _append(self, uid: int | None, lines: list[bytes]) -> int:
        stream = self._stream(uid)
        before = stream.part
        done = stream.append(lines)
        if stream.part != before:
            self._look = 0.0  # there is another file
        return done

    def _stream(self, uid: int | None) -> Stream:
        found = self._streams.get(uid)
        if found is None:
            found = self._streams[uid] = Stream(self._directory, uid, self._writer, self._sync_users)
        return found

    def _make_room(self) -> None:
        self._room.make({stream.part for stream in self._streams.values() if stream.part is not None})
        if len(self._streams) > _STREAMS_MAX:  # they are on the disk, and are looked for there again
            self._streams.clear()

    def _tell_loss(self, loss: Loss) -> None:
        self._losses.append(loss)
        self._try(self._tell_losses)

    def _tell_losses(self) -> None:
        """Write what was lost, in the node's stream, before anything else. Raises OSError."""
        while self._losses:
            one = self._losses[0]
            body = {"epoch": one.epoch, "first": one.first, "last": one.last, "records": one.last - one.first + 1,
                    "bytes": one.bytes, "why": one.why}  # fmt: skip
            self._stream(None).append([self._line("spool.lost", ROOT, uid=one.uid, body=body)])
            del self._losses[0]

    def _tell(self, now_all: bool) -> None:
        """Write how much was dropped of whom, each at its time. Raises OSError."""
        self._tell_losses()
        now = time.monotonic()
        with self._lock:
            due = [uid for uid, (when, _) in self._told.items() if now_all or now >= when]
            dropped = {key: self._dropped.pop(key) for key in list(self._dropped) if key[0] in due}
            for uid in due:
                _, pause = self._told.pop(uid)
                if any(key[0] == uid for key in dropped):  # whoever goes on is told of less often
                    pause = TELL_MAX_S if pause > TELL_S else TELL_NEXT_S
                    self._told[uid] = now + pause, pause
        while dropped:
            (uid, why), (records, size) = next(iter(dropped.items()))
            try:
                body = {"records": records, "bytes": size, "why": why}
                self._stream(None).append([self._line("spool.dropped", ROOT, uid=uid, body=body)])
            except OSError:
                with self._lock:
                    for key, counts in dropped.items():
                        more = self._dropped.get(key, (0, 0))
                        self._dropped[key] = counts[0] + more[0], counts[1] + more[1]
                        self._told[key[0]] = now + _AGAIN_S, TELL_S
                raise
            del dropped[uid, why]

    def _line(self, kind: str, source: str, *, at: float | None = None, body: Mapping[str, Any], **more: Any) -> bytes:
        epoch, seq = UNNUMBERED
        when = round(time.time() if at is None else at, 3)
        return encode(
            Event(
                self._writer.cluster,
                self._writer.node,
                epoch,
                seq,
                when,
                kind,
                source,
                self._writer.boot,
                body=body,
                **more,
            )
        )
