"""Appends whole frames to a journal whose disk may be full, or the user's quota used up.

A frame that does not fit is taken back whole, so the file stays a journal, and the next one is tried again. What was
lost is told of by an event "full" as soon as something fits. When nothing does up to the end, that event and the
sampler's end mark take the place of the last frames that were written: blocks that the file has already need no room
(but on file systems that copy on write). So the step's end is known, and that its disk was full.

Standard library only: the sampler uses it, too.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections import deque
from collections.abc import Callable

from piolet.samples.journal import json_frame, split

_FULL = (errno.ENOSPC, errno.EDQUOT)
_KEPT = 64  # frames whose places are known


class Appender:
    """Writes to `fd`, a journal opened for writing; `now` is time.monotonic_ns().

    lost    what was said when there was no room, '' while there always was
    """

    def __init__(self, fd: int, now: Callable[[], int] = time.monotonic_ns) -> None:
        self.fd = fd
        self.lost = ""
        self._now = now
        self._end = os.fstat(fd).st_size
        self._buffer = b""
        self._written: deque[int] = deque(maxlen=_KEPT)  # where the last frames begin
        self._since = 0
        self._dropped = 0
        self._last = b""  # the end mark that found no room

    def add(self, data: bytes) -> None:
        """Take bytes of the stream of frames. Raises OSError: it cannot be written, for another reason than room."""
        frames, self._buffer = split(self._buffer + data)
        for kind, frame in frames:
            if self._dropped and self._put(self._event()):
                self._dropped = self._since = 0
            if self._dropped or not self._put(frame):
                self._dropped += 1
                self._since = self._since or self._now()
                self._last = frame if kind == "E" and b'"event":"end"' in frame else b""

    @property
    def size(self) -> int:
        """How large the journal is, in bytes; 0 while something does not fit: then it is to be left alone."""
        return 0 if self._dropped else self._end

    def move(self, fd: int) -> None:
        """Go on in another file, which has all that this one had."""
        os.close(self.fd)
        self.fd, self._end = fd, os.fstat(fd).st_size
        self._written.clear()

    def finish(self) -> None:
        """Write at the end what must be known, in the place of the last frames if there is no other."""
        if not self._dropped:
            return
        marks = self._event() + self._last
        if self._put(marks):
            return
        # The first frame, which says of what step this is, stays.
        for place in reversed(list(self._written)[1:]):
            if self._end - place >= len(marks):
                flags = fcntl.fcntl(self.fd, fcntl.F_GETFL)
                fcntl.fcntl(self.fd, fcntl.F_SETFL, flags & ~os.O_APPEND)  # pwrite would append
                os.pwrite(self.fd, marks, place)
                os.ftruncate(self.fd, place + len(marks))
                return

    def _put(self, frame: bytes) -> bool:
        """Write a frame whole, or nothing of it: then there is no room."""
        done = 0
        try:
            while done < len(frame):
                done += os.write(self.fd, frame[done:])
        except OSError as error:
            if done:
                os.ftruncate(self.fd, self._end)
            if error.errno not in _FULL:
                raise
            self.lost = error.strerror or str(error)
            return False
        self._written.append(self._end)
        self._end += len(frame)
        return True

    def _event(self) -> bytes:
        times = {"since": self._since, "at": self._now()}
        return json_frame("E", {"event": "full", **times, "text": self.lost, "dropped": self._dropped})
