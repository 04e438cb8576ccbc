"""One stream of a spool, as it is written: numbers its records and appends them, whole lines or none.

It goes on where it ended if that was this node's, since this boot: what a node wrote before it lost its power may never
have come to the disk, though it was read there, and a number is never given twice. So each boot has an epoch of its
own, and so has what follows a file that is damaged, or not as it was left.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from piolet.base.errors import EventError
from piolet.events import parts
from piolet.events.envelope import Event, decode, numbered
from piolet.events.parts import Part

FILE_BYTES = 1 << 20


@dataclass(frozen=True)
class Writer:
    """Who writes: cluster, node, and the boot id."""

    cluster: str
    node: str
    boot: str


class Stream:
    """The stream of user `uid` in `directory`, None: the node's. What the constructor finds is cut to whole lines.

    before   the epoch that it does not go on with, '' if there was none, or if it does
    Raises OSError.
    """

    def __init__(self, directory: str, uid: int | None, writer: Writer, sync: bool = False) -> None:
        self.before = ""
        self.uid = uid
        self._directory = directory
        self._writer = writer
        self._sync = sync or uid is None  # what a node said last before it died is what one wants to know
        self._part: Part | None = None
        self._size = 0
        self.epoch, self.next = "", 1
        self._go_on()

    @property
    def part(self) -> Part | None:
        """The file that is written to, if there is one."""
        return self._part

    def append(self, lines: Sequence[bytes]) -> int:
        """Number and write lines of `envelope.encode` for events of UNNUMBERED; return how many were written.

        Raises OSError if none was. Those that were not have no number.
        """
        done = 0
        while done < len(lines):
            try:
                written = self._write(lines[done:])
            except OSError:
                if not done:
                    raise
                break
            if not written:
                break
            done += written
        return done

    def _write(self, lines: Sequence[bytes]) -> int:
        descriptor = self._open()
        try:
            data, ends = bytearray(), list[int]()
            for line in lines:
                data += numbered(line, self.epoch, self.next + len(ends))
                ends.append(len(data))
                if self._size + len(data) >= FILE_BYTES:
                    break
            put = os.write(descriptor, data)
            whole = sum(end <= put for end in ends)
            end = ends[whole - 1] if whole else 0
            self._size += end
            self.next += whole
            if end != put:  # half a line would spoil the next one, too
                os.ftruncate(descriptor, self._size)
            if self._sync and whole:
                with contextlib.suppress(OSError):
                    os.fdatasync(descriptor)
        except OSError:
            self._forget()
            raise
        finally:
            os.close(descriptor)
        if whole == 0:
            raise OSError(28, os.strerror(28))
        return whole

    def _open(self) -> int:
        """Return a descriptor of the file to append to, a new one where that is full, or not as it was left."""
        if not self.epoch:
            self._go_on()
        if self._part is not None and self._size < FILE_BYTES:
            with contextlib.suppress(FileNotFoundError):
                descriptor = parts.open_part(self._directory, self._part, os.O_WRONLY | os.O_APPEND)
                if os.fstat(descriptor).st_size == self._size:
                    return descriptor
                os.close(descriptor)
            self._begin(self.epoch)
        part = Part(self.uid, self.epoch, self.next)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL
        descriptor = parts.open_part(self._directory, part, flags)
        self._part, self._size = part, 0
        return descriptor

    def _begin(self, before: str) -> None:
        self.before, self.epoch, self.next = before, secrets.token_hex(8), 1
        self._part, self._size = None, 0

    def _forget(self) -> None:
        """Have the next record look at what is on the disk."""
        self.epoch, self._part = "", None

    def _go_on(self) -> None:
        own = [part for part in parts.parts(self._directory) if part.uid == self.uid]
        while own:
            newest = max(own, key=lambda part: (_written(self._directory, part), part.first)).epoch
            *before, last = [part for part in own if part.epoch == newest]
            descriptor = parts.open_part(self._directory, last, os.O_RDWR | os.O_APPEND)
            try:
                line, end = parts.tail(descriptor)
                if end:
                    event = self._own(line, newest)
                else:  # it was made, and then nothing was written
                    event = self._own(parts.last_line(self._directory, before[-1]), newest) if before else None
                    event = event if event is not None and event.seq == last.first - 1 else None
                if event is not None:
                    if os.fstat(descriptor).st_size != end:
                        os.ftruncate(descriptor, end)
                    self.before, self.epoch, self.next = "", newest, event.seq + 1
                    self._part, self._size = last, end
                    return
            finally:
                os.close(descriptor)
            if end:
                self._begin(newest)
                return
            os.unlink(os.path.join(self._directory, last.name))
            own.remove(last)
        self._begin("")

    def _own(self, line: bytes, epoch: str) -> Event | None:
        """Return the event if it is one of this writer's, of this boot."""
        try:
            event = decode(line)
        except EventError:
            return None
        same = Writer(event.cluster, event.node, event.boot) == self._writer
        return event if same and event.epoch == epoch else None


def _written(directory: str, part: Part) -> int:
    try:
        return os.lstat(os.path.join(directory, part.name)).st_mtime_ns
    except OSError:
        return 0
