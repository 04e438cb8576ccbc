"""Takes what nodes recorded of steps: checks a batch, and has it written with what else has come meanwhile.

Who may send is what doors say of every batch; what a node says of a job that Slurm has elsewhere, or of another owner,
is refused and its number passed over, with a reason in the step's quality (decision 139).
"""

from __future__ import annotations

import functools
import logging
import os
import queue
import re
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from piolet.base.errors import EventError, ObserveError
from piolet.central.intake import gone_of
from piolet.central.jobs import Known
from piolet.central.latest import Latest
from piolet.central.ledger import settle
from piolet.central.marks import Sent, Shares
from piolet.central.store.database import StoreError
from piolet.events import batch
from piolet.events.envelope import Event, decode
from piolet.observe import journal
from piolet.observe.catalogue import Catalogue, rebuild
from piolet.observe.gathering import CLOCK_S
from piolet.observe.spool import Batch, Line, Remark, Spool, Taken
from piolet.transport.statements import Statement

_LOG = logging.getLogger("piolet-central")
_WAITING_MOST = 2000
_TOGETHER = 256
_JOB = re.compile(r"[A-Za-z0-9_]{1,60}")
_BOOT = re.compile(r"[0-9a-f-]{32,36}")
_UP_MOST = 1e10
_OFFSETS_MOST = 1e9
_Result = Any
_NODES_OWN = ("node.start", "spool.lost", "spool.dropped")


def batch_of(
    statement: Statement, body: bytes, said: Mapping[str, str], received: float, known: Callable[[str], Known | None]
) -> Batch:
    """Return what is to be kept of a batch.

    said       what the request's target says: `gone` as of /v1/events, `up` the seconds since boot when it was sent and
               `boot` of which boot
    received   when it came, by this machine's clock
    known      returns what Slurm says of a job, as far as it says anything

    Raises EventError: it is no batch, or has a line that is no record, or of another node; nothing of it is kept then.
    """
    ahead = statement.sent - received
    ahead = ahead if abs(ahead) < _OFFSETS_MOST else 0.0
    booted, boot = _booted(said, received)
    records: list[Line | Remark] = []
    for number, line in enumerate(batch.unpack(body) if body else [], 1):
        try:
            event = decode(line)
        except EventError as error:
            raise EventError(f"line {number}: {error.message}") from None
        if (event.cluster, event.node) != (statement.cluster, statement.node):
            raise EventError(f"line {number}: the record is of node {event.node} of {event.cluster}")
        records.append(_record(event, line, ahead, known))
    return Batch(statement.node, records, received, gone_of(said.get("gone", "")), ahead, booted, boot)


def _booted(said: Mapping[str, str], received: float) -> tuple[float | None, str]:
    boot = said.get("boot", "")
    try:
        up = float(said.get("up", "nan"))
    except ValueError:
        up = -1.0
    if not boot or not 0 <= up < _UP_MOST or _BOOT.fullmatch(boot) is None:
        return None, ""
    return received - up, boot


def _record(event: Event, line: bytes, ahead: float, known: Callable[[str], Known | None]) -> Line | Remark:
    when = event.time - ahead if abs(ahead) > CLOCK_S else event.time
    body = event.body
    if event.kind not in journal.KINDS:
        kind = event.kind if event.kind in _NODES_OWN else "other"
        numbers = [body.get("first"), body.get("last")]
        if kind == "spool.lost" and all(type(one) is int and 0 < one < 2**63 for one in numbers):
            of = str(body.get("epoch", ""))[:16]
            return Remark(event.epoch, event.seq, when, kind, str(body.get("why", "")), of, *numbers)  # type: ignore[arg-type]
        return Remark(event.epoch, event.seq, when, kind, str(body.get("why", "")))
    job = str(event.job) if event.job is not None else body.get("sluid")
    why = ""
    if not isinstance(job, str) or not _JOB.fullmatch(job) or not event.step or event.uid is None:
        why = "a record does not say of which step it is"
    elif (told := known(job)) is not None:
        if told.uid is not None and told.uid != event.uid:
            why = f"the node says that job {job} is of uid {event.uid}, and Slurm says another"
        elif told.nodes and event.node not in told.nodes:
            why = f"Slurm does not have job {job} on this node"
    if why or not isinstance(job, str) or event.uid is None:
        return Remark(event.epoch, event.seq, when, "refused", why)
    began = body.get("began")
    return Line(
        event.epoch, event.seq, job, event.step, event.run or 0, event.uid, event.time, line,
        float(began) if isinstance(began, int | float) and 0 < began < 1e11 else None, event.kind == journal.END,
        event.kind,
    )  # fmt: skip


class Frames:
    """The thread that writes the spool below `root`. Whoever brings a batch waits until it is on the disk.

    free_mib   with less room on the disk nothing is taken
    """

    def __init__(self, root: Path, free_mib: int, clock: Callable[[], float]) -> None:
        self._root, self._free, self._clock = root, free_mib << 20, clock
        self._queue: queue.Queue[tuple[Any, Future[Any]] | None] = queue.Queue(_WAITING_MOST)
        self._thread = threading.Thread(target=self._run, name="frames", daemon=True)
        self._begun: Future[None] = Future()
        self.records = 0
        self.latest = Latest(clock)
        self._shares = Shares()

    def start(self) -> None:
        """Begin. Raises ObserveError: the directory cannot be used."""
        self._thread.start()
        self._begun.result()

    def stop(self) -> None:
        """Write what waits, and end."""
        self._queue.put(None)
        self._thread.join()

    def add(self, arrived: Batch) -> Future[Taken]:
        """Have a batch kept. Raises StoreError: too many wait."""
        return self._put(arrived)

    def keep(self, sent: Sent) -> Future[dict[str, Any]]:
        """Have a user's marks kept. Raises StoreError: too many wait."""

        def write(catalogue: Catalogue) -> dict[str, Any]:
            try:
                self._refuse_full()
            except ObserveError as error:
                raise StoreError(error.message) from None
            return sent.keep(catalogue, self._shares)

        return self._put(write)

    def call(self, function: Callable[[Catalogue], _Result]) -> Future[_Result]:
        """Have a function called with the catalogue. Raises StoreError: too many wait."""
        return self._put(function)

    def _put(self, what: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            self._queue.put_nowait((what, future))
        except queue.Full:
            raise StoreError("the service has more to write than its disk takes", "try again later") from None
        return future

    def _run(self) -> None:
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            catalogue = Catalogue(self._root)
            if catalogue.is_empty and (made := rebuild(self._root, catalogue, self._clock())):
                _LOG.info("%s: the catalogue was made again, %d steps", self._root, made)
            spool = Spool(catalogue)
        except (ObserveError, OSError) as error:
            failure = error if isinstance(error, ObserveError) else ObserveError(f"{self._root}: {error.strerror}")
            self._begun.set_exception(failure)
            return
        self._begun.set_result(None)
        while (first := self._queue.get()) is not None:
            pending = [first]
            while isinstance(pending[-1][0], Batch) and len(pending) < _TOGETHER:
                try:
                    following = self._queue.get_nowait()
                except queue.Empty:
                    break
                if following is None:
                    self._queue.put(None)
                    break
                pending.append(following)
            batches = [one for one in pending if isinstance(one[0], Batch)]
            if batches:
                self._write(spool, batches)
            for function, future in pending[len(batches) :]:
                settle(future, functools.partial(function, catalogue))
        catalogue.close()

    def _write(self, spool: Spool, batches: list[tuple[Batch, Future[Taken]]]) -> None:
        try:
            self._refuse_full()
            found = spool.append([one for one, _ in batches])
        except Exception as error:  # noqa: BLE001 - whoever waits for it gets it, and the thread goes on
            if not isinstance(error, ObserveError):
                _LOG.exception("data of steps could not be kept")
            text = error.message if isinstance(error, ObserveError) else "data of steps could not be kept"
            for _, future in batches:
                future.set_exception(StoreError(text))
            return
        for (one, future), taken in zip(batches, found, strict=True):
            self.records += taken.records
            self.latest.take(one)
            future.set_result(taken)

    def _refuse_full(self) -> None:
        room = os.statvfs(self._root)
        if room.f_bavail * room.f_frsize < self._free:
            raise ObserveError(f"less than {self._free >> 20} MiB are free where {self._root} is")
