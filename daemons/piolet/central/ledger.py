"""The thread that writes the store, and the thread in which rules judge what was written.

Whoever brings a batch waits until it is on the disk; what comes meanwhile is written together. Rules see records after
that, in the order in which they came. Their thread begins with all that the store has behind the batch up to which a
state was kept, so that what they know is always what the store says; a conclusion that is there already is not written
again (decisions 124, 131).
"""

from __future__ import annotations

import collections
import functools
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

from piolet.base.errors import PioletError
from piolet.central.conclusions import Conclusion
from piolet.central.saving import Place
from piolet.central.store import states, wordings
from piolet.central.store.database import StoreError
from piolet.central.store.reader import Reader
from piolet.central.store.rows import Stored
from piolet.central.store.writer import Arrival, Taken, Writer
from piolet.events.envelope import Event

_LOG = logging.getLogger("piolet-central")
_TOGETHER_RECORDS = 5000
_WAITING_MOST = 2000
_UNJUDGED_MOST = 50_000
_AGAIN_S = 1.0
SAVE_EVERY_S, SAVE_SHARE = 600.0, 50.0
"""Seconds from one state that is kept to the next; and so many times what keeping one takes, where that is longer."""
_Result = TypeVar("_Result")


class Engine(Protocol):
    """What rules are to this service."""

    def take(self, event: Event, received: float | None = None) -> Iterable[Conclusion]:
        """Return what an event concludes."""


class Ledger:
    """Writes; `judge` gets what was written.

    failing   why the last batches were not kept, '' where they were: a disk that is full, a data base that is away
    """

    def __init__(self, writer: Writer, judge: Judge | None = None, clock: Callable[[], float] = time.time) -> None:
        self._writer = writer
        self._clock = clock
        self._judge = judge
        self._queue: queue.Queue[tuple[Any, Future[Any]] | None] = queue.Queue(_WAITING_MOST)
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        self.records = 0
        self.failing = ""

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Write what waits, and end."""
        self._queue.put(None)
        self._thread.join()

    def add(self, arrival: Arrival) -> Future[Taken]:
        """Have a batch written. Raises StoreError: too many wait."""
        future: Future[Taken] = Future()
        try:
            self._queue.put_nowait((arrival, future))
        except queue.Full:
            raise StoreError("the service has more to write than its disk takes", "try again later") from None
        return future

    def take_own(self, records: Sequence[Event]) -> int:
        """Keep records that the service itself makes; return how many of them are new. Raises EventError."""
        return len(self.call(self._take_own(records)).result())

    def _take_own(self, records: Sequence[Event]) -> Callable[[Writer], list[Stored]]:
        def take(writer: Writer) -> list[Stored]:
            found = writer.take_own(records, self._clock())
            if self._judge is not None:
                self._judge.written(found)
            return found

        return take

    def cursor(self, name: str) -> float | None:
        """Return what `set_cursor` said last of something."""
        return self.call(lambda writer: wordings.cursor(writer, name)).result()

    def set_cursor(self, name: str, value: float) -> None:
        """Keep up to where something stands. Raises EventError."""
        self.call(lambda writer: wordings.set_cursor(writer, name, value)).result()

    def call(self, function: Callable[[Writer], _Result]) -> Future[_Result]:
        """Have a function called by the thread that writes, which makes transactions of its own; waits for its turn."""
        future: Future[_Result] = Future()
        self._queue.put((function, future))
        return future

    def _run(self) -> None:
        while (first := self._queue.get()) is not None:
            pending = [first]
            records = 0
            while records < _TOGETHER_RECORDS and isinstance(pending[-1][0], Arrival):
                records += len(pending[-1][0].records)
                try:
                    following = self._queue.get_nowait()
                except queue.Empty:
                    break
                if following is None:
                    self._queue.put(None)
                    break
                pending.append(following)
            arrivals = [one for one in pending if isinstance(one[0], Arrival)]
            self._write(arrivals)
            for function, future in pending[len(arrivals) :]:
                settle(future, functools.partial(function, self._writer))

    def _write(self, arrivals: Sequence[tuple[Arrival, Future[Taken]]]) -> None:
        try:
            results = self._writer.append([arrival for arrival, _ in arrivals]) if arrivals else []
        except Exception as error:  # noqa: BLE001 - whoever waits for one of them gets it
            if len(arrivals) > 1 and not isinstance(error, StoreError):
                for one in arrivals:  # one of them is to blame: not all
                    self._write([one])
                return
            if not isinstance(error, PioletError):
                _LOG.exception("a batch could not be written")
                error = StoreError("the batch could not be written")
            if isinstance(error, StoreError):
                self.failing = error.message
            for _, future in arrivals:
                future.set_exception(error)
            return
        if arrivals:
            self.failing = ""
        for (_, future), taken in zip(arrivals, results, strict=True):
            future.set_result(taken)
            self.records += len(taken.stored)
        if self._judge is not None:
            self._judge.written([one for taken in results for one in taken.stored])


class Judge:
    """Has the engine judge what the store has, in a thread.

    batch   the number of the last batch that was judged
    delays  seconds from a record's arrival to the end of its judging, of the last ones

    after   up to where the engine has judged already
    pack    what makes a state of it that is to be kept; None: none is
    """

    def __init__(
        self,
        reader: Reader,
        engine: Engine,
        clock: Callable[[], float] = time.time,
        after: Place = Place(),  # noqa: B008 - it does not change
        pack: Callable[[Place], tuple[str, bytes] | None] | None = None,
    ) -> None:
        self._reader, self._engine, self._clock = reader, engine, clock
        self._pack, self._saved, self._save_at = pack, after, time.monotonic() + SAVE_EVERY_S
        self._ledger: Ledger | None = None
        self._waiting: collections.deque[Stored] = collections.deque()
        self._wake = threading.Condition()
        self._behind = True  # of the store: what waits is not all
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="judge", daemon=True)
        self.batch = after.batch
        self._seq = after.seq  # of the last record that was judged, in that batch
        self._unwritten = False  # something was concluded that is not in the store
        self.broken = ""
        self.delays: collections.deque[float] = collections.deque(maxlen=10_000)

    def start(self, ledger: Ledger) -> None:
        """Begin with what the store has; conclusions are written by `ledger`."""
        self._ledger = ledger
        self._thread.start()

    def stop(self) -> None:
        """End; what was not judged is when the service starts again."""
        with self._wake:
            self._ended = True
            self._wake.notify()
        self._thread.join()

    @property
    def is_caught_up(self) -> bool:
        """Whether everything that was written has been judged."""
        with self._wake:
            return not self._behind and not self._waiting

    @property
    def open(self) -> frozenset[str] | None:
        """The cases that are open by today's rules; None: the rules have not judged all of the store yet, or broke."""
        known = getattr(self._engine, "open", None)
        return None if known is None or self._behind or self.broken else frozenset(tuple(known))

    def sleeps(self, node: str) -> bool:
        """Return whether Slurm has a node powered down, as far as was judged."""
        known = getattr(self._engine, "nodes", {}).get(node)
        return known is not None and bool(known.asleep[1])

    def written(self, stored: Sequence[Stored]) -> None:
        """Take what was just written, in order."""
        with self._wake:
            if len(self._waiting) + len(stored) > _UNJUDGED_MOST:
                self._waiting.clear()
                self._behind = True  # it is read from the store when there is time
            elif not self._behind:
                self._waiting.extend(stored)
            self._wake.notify()

    def _run(self) -> None:
        try:
            while not self._ended:
                if self._behind and not self._caught_up():
                    continue
                self._save()
                with self._wake:
                    while not (self._waiting or self._behind or self._ended):
                        self._wake.wait()
                    pieces = list(self._waiting)
                    self._waiting.clear()
                self._judge(pieces)
            self._save(ended=True)
        except Exception as error:  # noqa: BLE001 - records go on being kept, and the next start judges them all
            self.broken = f"{type(error).__name__}: {error}"
            _LOG.exception("rules are not judged any more until the service starts again")

    def _caught_up(self) -> bool:
        """Judge what the store has; return whether it could be read."""
        try:
            self._catch_up()
        except StoreError as error:
            _LOG.warning("%s", error.message)
            time.sleep(_AGAIN_S)
            return False
        return True

    def _catch_up(self) -> None:
        while not self._ended:
            before = self.batch
            piece: list[Stored] = []
            for stored in self._reader.arrivals(self.batch):
                if len(piece) >= 1000 and piece[-1].batch != stored.batch:
                    self._judge(piece)
                    piece = []
                    self._save()
                if self._ended:
                    return
                piece.append(stored)
            self._judge(piece)
            if self.batch != before:
                continue
            with self._wake:
                # Nothing new was there when reading began; what was written since is seen by another look, under the
                # lock of whoever hands over.
                if not any(True for _ in self._reader.arrivals(self.batch)):
                    self._behind = False
                    return

    def _judge(self, pieces: Sequence[Stored]) -> None:
        found = []
        for stored in pieces:
            if (stored.batch, stored.event.seq) <= (self.batch, self._seq):
                continue  # it was read from the store before whoever wrote it said so
            found += [(conclusion, stored.batch) for conclusion in self._engine.take(stored.event, stored.received)]
            self.batch, self._seq = stored.batch, stored.event.seq
        if found and self._ledger is not None:
            self._write(self._ledger, found)
        now = self._clock()
        self.delays.extend(now - stored.received for stored in pieces[-100:])

    def _save(self, *, ended: bool = False) -> None:
        """Keep what the engine knows, now and then, and at the end: between two batches, behind all conclusions."""
        place, begin = Place(self.batch, self._seq), time.monotonic()
        if self._pack is None or self._unwritten or place == self._saved or self._ledger is None:
            return
        if not ended and begin < self._save_at:
            return
        packed = self._pack(place)
        if packed is not None:
            try:
                self._ledger.call(lambda writer: states.put(writer, *packed)).result()
                self._saved = place
            except StoreError as error:
                _LOG.warning("%s", error.message)
        took = time.monotonic() - begin
        self._save_at = begin + max(SAVE_EVERY_S, took * SAVE_SHARE)

    def _write(self, ledger: Ledger, found: Sequence[tuple[Conclusion, int]]) -> None:
        """Write conclusions, as soon as the data base takes them; when the service ends, it is tried once."""
        while True:
            try:
                ledger.call(lambda writer: wordings.conclude(writer, found, self._clock())).result()
                return
            except StoreError as error:
                _LOG.warning("%s", error.message)
                if self._ended:
                    self._unwritten = True
                    return
                time.sleep(_AGAIN_S)


def settle(future: Future[Any], call: Callable[[], Any]) -> None:
    """Have a future say what `call` returns or raises: whoever waits for it gets it."""
    try:
        result = call()
    except Exception as error:  # noqa: BLE001 - whoever waits for it gets it
        future.set_exception(error)
    else:
        future.set_result(result)
