"""Verdicts on this node's disk, for a central service to take: one JSON object a line, in files of bounded size.

It is written by the server, which has no privileges, in a thread: a disk that is slow, full or hung costs lines, which
are counted and told in the next one that is written, and never a vetting. A line says which user vetted (the kernel's
word) and what the vetting said (the user's).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import threading
import time
from typing import Any

_log = logging.getLogger("pioletd")

LINE_MAX = 16 * 1024
_FILE_BYTES = 4 << 20
_FILES_MAX = 16
_WAITING_MAX = 4096
_CURRENT = "verdicts.jsonl"


class Spool:
    """The files in `directory`: verdicts.jsonl, and older ones with the second in which they were closed."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._waiting: queue.Queue[bytes] = queue.Queue(_WAITING_MAX)
        self._lost = 0
        self._thread = threading.Thread(target=self._run, name="spool", daemon=True)
        self._thread.start()

    def put(self, uid: int, line: bytes) -> None:
        """Take what a user's vetting said, one line of JSON; what is none is dropped. Never waits."""
        try:
            if len(line) > LINE_MAX:
                raise ValueError("too long")
            said = json.loads(line)
            entry: dict[str, Any] = {"uid": uid, "time": round(time.time(), 3), "verdict": said}
            if not isinstance(said, dict):
                raise TypeError("no object")
        except (ValueError, TypeError, RecursionError):
            return
        if self._lost:
            entry["lost_before"] = self._lost
        try:
            self._waiting.put_nowait(json.dumps(entry, separators=(",", ":")).encode() + b"\n")
            self._lost = 0
        except queue.Full:
            self._lost += 1

    def flush(self, within_s: float = 2.0) -> None:
        """Wait until everything is written, at most so long."""
        deadline = time.monotonic() + within_s
        while self._waiting.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.01)

    def _run(self) -> None:
        while True:
            data = self._waiting.get()
            try:
                self._write(data)
            except OSError as error:
                self._lost += 1
                _log.warning("a verdict is not spooled in %s: %s", self._directory, error.strerror)
                time.sleep(1.0)
            finally:
                self._waiting.task_done()

    def _write(self, data: bytes) -> None:
        path = os.path.join(self._directory, _CURRENT)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640)
        try:
            before = os.fstat(fd).st_size
            if os.write(fd, data) != len(data):
                os.ftruncate(fd, before)  # half a line would spoil the next one, too
                raise OSError(28, "No space left on device")
        finally:
            os.close(fd)
        if before + len(data) > _FILE_BYTES:
            self._rotate(path)

    def _rotate(self, path: str) -> None:
        os.rename(path, os.path.join(self._directory, f"verdicts-{time.time_ns()}.jsonl"))
        old = sorted(name for name in os.listdir(self._directory) if name.startswith("verdicts-"))
        for name in old[: max(0, len(old) - _FILES_MAX)]:
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(self._directory, name))
