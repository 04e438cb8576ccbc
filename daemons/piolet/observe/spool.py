"""What came of steps and is in no table yet: files that only grow, one for each step at a time.

`append` takes batches of nodes' journals as a whole: each record once, in the order of its node's numbers, and on the
disk before it returns. A file counts up to where the catalogue says; what stands behind that is of a batch that was
never acknowledged, and is cut off. `close` ends a step's file, so that its records can be made into tables meanwhile
(observe/gathering.py). So whatever is killed, no record is lost and none is there twice.

A file is frames of `samples.journal`, of kind B: 4 bytes with the length of the first part, JSON (node, received,
ahead, booted, boot), and the node's lines, compressed.
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from piolet.base.errors import ObserveError
from piolet.observe.catalogue import GONE, OPEN, ROLLED, SPOOL, Catalogue, Row
from piolet.samples import journal

SUFFIX = ".frames"
_LEVEL = 1
_OTHER_S = 2 * 86400.0  # a step that begins so long after the one of its name is another
_CLOSED = (ROLLED, GONE)  # what comes so late is a row of its own
_LINES_MOST = 8 << 20


@dataclass(frozen=True)
class Line:
    """A record of a step, as a node's journal has it; `began` is when the step did, seconds since 1970, if it says."""

    epoch: str
    seq: int
    job: str
    step: str
    run: int
    uid: int
    time: float
    text: bytes
    began: float | None = None
    ended: bool = False
    kind: str = ""


@dataclass(frozen=True)
class Remark:
    """A record of a node itself, or one that is never kept: why, of records `first` to `last` of `of`."""

    epoch: str
    seq: int
    time: float
    kind: str
    why: str
    of: str = ""
    first: int = 0
    last: int = 0


@dataclass(frozen=True)
class Batch:
    """What a node sent at once.

    received   by this machine's clock, seconds since 1970
    gone       epoch -> the number up to which its node has no records any more
    ahead      how far the node's clock is ahead, in seconds; None: not known
    booted     when the node booted, by this machine's clock; None: not known
    boot       the boot that this is of
    """

    node: str
    records: Sequence[Line | Remark]
    received: float
    gone: Mapping[str, int] = field(default_factory=dict)
    ahead: float | None = None
    booted: float | None = None
    boot: str = ""


@dataclass
class Taken:
    """What became of a batch: epoch -> up to which number it is here; whether records before it are missing."""

    have: dict[str, int] = field(default_factory=dict)
    missing: bool = False
    records: int = 0


@dataclass(frozen=True)
class Arrived:
    """Lines of a step as they came together, and what was known of their node's clock."""

    node: str
    received: float
    ahead: float | None
    booted: float | None
    boot: str
    lines: list[bytes]


class Spool:
    """Writes the spool below a root; one process, and one thread of it."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue
        self._top = catalogue.root / SPOOL
        try:
            self._top.mkdir(exist_ok=True)
        except OSError as error:
            raise ObserveError(f"cannot make {self._top}: {error.strerror}") from None
        for row in catalogue.rows("state = ?", OPEN):
            with contextlib.suppress(FileNotFoundError):
                os.truncate(file_of(catalogue.root, row.id, row.segment), row.bytes)

    def append(self, batches: Sequence[Batch]) -> list[Taken]:
        """Keep batches. Raises ObserveError: none of them is kept, as the disk is full, for one."""
        undo: dict[Path, int] = {}
        try:
            with self.catalogue.transaction():
                found = self._append(batches, undo)
        except BaseException as error:
            for path, size in undo.items():
                with contextlib.suppress(OSError):
                    os.truncate(path, size)
            if isinstance(error, OSError):
                raise ObserveError(f"data of steps cannot be kept: {error.strerror}", "is the disk full?") from None
            raise
        return found

    def _append(self, batches: Sequence[Batch], undo: dict[Path, int]) -> list[Taken]:
        found = []
        rows: dict[tuple[str, str, int, int], Row] = {}
        pieces: dict[int, list[bytes]] = {}
        for batch in batches:
            taken, lines = self._new(batch)
            for key, own in lines.items():
                row = rows[key] = self._row(rows.get(key), key, own, batch)
                pieces.setdefault(row.id, []).append(_frame(batch, own))
                self.catalogue.seen(row, batch.node, any(one.ended for one in own))
            self.catalogue.set_have(batch.node, taken.have, batch.received)
            found.append(taken)
        last = max((batch.received for batch in batches), default=0.0)
        for row in rows.values():
            path = file_of(self.catalogue.root, row.id, row.segment)
            undo[path] = row.bytes
            size = _write(path, b"".join(pieces[row.id]), row.bytes)
            self.catalogue.change(row, bytes=size, last=last, state=OPEN)
        return found

    def _new(self, batch: Batch) -> tuple[Taken, dict[tuple[str, str, int, int], list[Line]]]:
        """Return what of a batch is not here yet, by step; what a node says of itself is noted."""
        of_epoch: dict[str, list[Line | Remark]] = {epoch: [] for epoch in batch.gone}
        for one in batch.records:
            of_epoch.setdefault(one.epoch, []).append(one)
        taken = Taken(self.catalogue.have(batch.node, list(of_epoch)))
        lines: dict[tuple[str, str, int, int], list[Line]] = {}
        for epoch, records in of_epoch.items():
            upto = batch.gone.get(epoch, 0)
            if upto > taken.have[epoch]:
                numbers = taken.have[epoch] + 1, upto
                self.catalogue.remark(batch.node, epoch, numbers, batch.received, "gone", "its node has it no more")
                taken.have[epoch] = upto
            for one in records:
                if one.seq <= taken.have[epoch]:
                    continue
                if one.seq != taken.have[epoch] + 1:
                    taken.missing = True
                    break
                taken.have[epoch] = one.seq
                taken.records += 1
                if isinstance(one, Line):
                    lines.setdefault((one.job, one.step, one.run, one.uid), []).append(one)
                else:
                    self._note(batch.node, one)
        return taken, lines

    def _note(self, node: str, one: Remark) -> None:
        where = (one.first, one.last) if one.of else (one.seq, one.seq)
        self.catalogue.remark(node, one.of or one.epoch, where, one.time, one.kind, one.why)

    def _row(self, known: Row | None, key: tuple[str, str, int, int], own: Sequence[Line], batch: Batch) -> Row:
        if known is not None:
            return known
        job, step, run, uid = key
        ahead = batch.ahead or 0.0
        start = min((one.began for one in own if one.began is not None), default=own[0].time) - ahead
        row = self.catalogue.of(job, step, run, uid)
        if row is None or row.state in _CLOSED or (row.state != OPEN and start - row.last > _OTHER_S):
            row = self.catalogue.add(job, step, run, uid, start, batch.received)
            (self._top / str(row.id)).mkdir(exist_ok=True)
        elif row.state != OPEN:  # later than expected: what came is added to what is there
            (self._top / str(row.id)).mkdir(exist_ok=True)
            self.catalogue.change(row, segment=row.segment + 1, bytes=0)
            row = self.catalogue.step(row.id) or row
        return row


def close(catalogue: Catalogue, row: Row) -> None:
    """End the file of a step that grows, and let another begin; in no transaction. Raises ObserveError."""
    with catalogue.transaction():
        now = catalogue.step(row.id)
        if now is None or not now.bytes:
            return
        try:
            os.truncate(file_of(catalogue.root, now.id, now.segment), now.bytes)
        except OSError as error:
            raise ObserveError(f"the spool of {now.name} cannot be read: {error.strerror}") from None
        catalogue.change(now, segment=now.segment + 1, bytes=0)


def closed(root: Path, row: Row) -> list[Path]:
    """Return the files of a step that do not grow any more, in order."""
    try:
        names = os.listdir(root / SPOOL / str(row.id))
    except FileNotFoundError:
        return []
    numbers = sorted(int(name.removesuffix(SUFFIX)) for name in names if name.endswith(SUFFIX))
    return [file_of(root, row.id, number) for number in numbers if number < row.segment]


def read(path: Path, most: int | None = None) -> Iterator[Arrived]:
    """Yield what is in a file of the spool, of one that grows as much as counts. Raises ScoreError, ObserveError."""
    for frame in journal.read(str(path)):
        if most is not None and frame.end > most:
            return
        try:
            size = int.from_bytes(frame.body[:4], "little")
            head: dict[str, Any] = json.loads(frame.body[4 : 4 + size])
            text = zlib.decompressobj().decompress(frame.body[4 + size :], _LINES_MOST)
            lines = [line + b"\n" for line in text.split(b"\n")[:-1]]
            yield Arrived(head["node"], head["received"], head["ahead"], head["booted"], head["boot"], lines)
        except (ValueError, KeyError, zlib.error) as error:
            raise ObserveError(f"{path} is damaged: {error}") from None


def file_of(root: Path, step: int, segment: int) -> Path:
    """Return where a file of a step's spool is."""
    return root / SPOOL / str(step) / f"{segment:06d}{SUFFIX}"


def _frame(batch: Batch, lines: Iterable[Line]) -> bytes:
    head = {"node": batch.node, "received": batch.received, "ahead": batch.ahead, "booted": batch.booted}
    said = json.dumps({**head, "boot": batch.boot}, separators=(",", ":")).encode()
    text = zlib.compress(b"".join(one.text for one in lines), _LEVEL)
    return journal.frame("B", len(said).to_bytes(4, "little") + said + text)


def _write(path: Path, data: bytes, at: int) -> int:
    """Write at a place of a file, have it on the disk, and return where it ends then."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        view = memoryview(data)
        done = 0
        while done < len(view):
            done += os.pwrite(descriptor, view[done:], at + done)
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)
    if not at:
        for place in (path.parent, path.parent.parent):
            descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    return at + len(data)
