"""Verdicts on this node's disk, for a central service to take: one JSON object a line, in files of bounded size.

It is written by the server, which has no privileges, in a thread: a disk that is slow, full or hung costs lines, which
are counted, and never a vetting. Each user has files of their own, and a share of what is written a second and of what
is kept: nobody pushes out what was found for another. What a user's share did not hold is counted in a line of its own.

A line is one of (docs/decisions/0066 says what of it may be believed)
    {"record":"verdict","time","node","uid","pid","job","step","found","word":"user","origin","kind","plan","said":{…}}
    {"record":"dropped","time","node","uid","lines","bytes"}

`said` is what the vetting wrote. Everything beside it is the kernel's word, root's, or this process's own.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import re
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from piolet.base.rates import Rates
from piolet.node.server.past import Past
from piolet.node.shares import Sparse

_log = logging.getLogger("pioletd")

LINE_MAX = 16 * 1024
ORIGINS = ("built-in", "site", "user")
_BYTES_AT_ONCE, _BYTES_A_SECOND = 512 * 1024, 8 * 1024
_LINES_AT_ONCE, _LINES_A_SECOND = 1024, 20
_FILE_BYTES = 1 << 20
_USERS_FILES_MAX = 4
_TOTAL_BYTES, _TOTAL_FILES = 64 << 20, 512
_WAITING_MAX = 4096
_TELL_S = 2.0
_NAME = re.compile(r"verdicts-(\d+)(?:-(\d+))?\.jsonl")


@dataclass(frozen=True)
class Who:
    """Whose vetting it is: what the kernel says of the connection, and what root found of its job and step.

    found   what says so: 'cgroup', 'slurmstepd', or 'unknown', and then there is neither job nor step
    """

    uid: int
    pid: int
    job: str | None = None
    step: str | None = None
    found: str = "unknown"


class Spool:
    """The files in `directory`: verdicts-UID.jsonl, and older ones with the nanosecond in which they were closed."""

    def __init__(self, directory: str, node: str | None = None) -> None:
        self._directory = directory
        self._node = node if node is not None else socket.gethostname().partition(".")[0]
        self._waiting: queue.Queue[tuple[int, bytes] | None] = queue.Queue(_WAITING_MAX)
        self._bytes = Rates(_BYTES_A_SECOND, _BYTES_AT_ONCE)
        self._lines = Rates(_LINES_A_SECOND, _LINES_AT_ONCE)
        self._dropped: dict[int, tuple[int, int]] = {}
        self._lock = threading.Lock()
        self._failed = Sparse(_log)
        self._past = Past(directory)
        self._thread = threading.Thread(target=self._run, name="spool", daemon=True)
        self._thread.start()

    def put(self, who: Who, line: bytes) -> None:
        """Take a line of a user's vetting: {"origin", "kind", "plan", "said"}. Never waits.

        A line that is none, or is too long, becomes a record that says so, as the user's word.
        """
        entry = {
            "record": "verdict", "time": round(time.time(), 3), "node": self._node, **asdict(who),
            "word": "user", **_content(line),
        }  # fmt: skip
        data = json.dumps(entry, separators=(",", ":")).encode("ascii") + b"\n"
        if not self._lines.take(who.uid) or not self._bytes.take(who.uid, len(data)):
            self.drop(who.uid, 1, len(line))
            return
        self._past.take(who.uid, entry)
        try:
            self._waiting.put_nowait((who.uid, data))
        except queue.Full:
            self.drop(who.uid, 1, len(line))

    def drop(self, uid: int, lines: int, size: int) -> None:
        """Count what of a user's is not spooled."""
        with self._lock:
            before = self._dropped.get(uid, (0, 0))
            self._dropped[uid] = before[0] + lines, before[1] + size
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(None)  # so that it is told

    def flush(self, within_s: float = 2.0) -> None:
        """Wait until everything is written, at most so long."""
        deadline = time.monotonic() + within_s
        while self._waiting.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.01)

    def _run(self) -> None:
        tell = float("inf")
        while True:
            next_turn = min(tell, self._past.due)
            try:
                left = None if next_turn == float("inf") else max(0.0, next_turn - time.monotonic())
                one = self._waiting.get(timeout=left)
            except queue.Empty:
                self._keep_past()
                if time.monotonic() >= tell:
                    tell = float("inf") if self._tell_dropped() else time.monotonic() + _TELL_S
                continue
            try:
                if one is None:
                    tell = min(tell, time.monotonic() + _TELL_S)
                else:
                    self._write(*one)
            except OSError as error:
                assert one is not None
                self.drop(one[0], 1, len(one[1]))
                self._failed.error("a verdict is not spooled in %s: %s", self._directory, error.strerror)
                time.sleep(1.0)
            finally:
                self._waiting.task_done()
            self._keep_past()
            if time.monotonic() >= tell:
                tell = float("inf") if self._tell_dropped() else time.monotonic() + _TELL_S

    def _keep_past(self) -> None:
        try:
            self._past.save(time.monotonic())
        except OSError as error:
            self._failed.error("the node's first values are not kept in %s: %s", self._directory, error.strerror)

    def _tell_dropped(self) -> bool:
        """Write how much was dropped of whom; return whether that could be written."""
        with self._lock:
            dropped, self._dropped = self._dropped, {}
        for uid, (lines, size) in dropped.items():
            entry = {"record": "dropped", "time": round(time.time(), 3), "node": self._node, "uid": uid,
                     "lines": lines, "bytes": size}  # fmt: skip
            try:
                self._write(uid, json.dumps(entry, separators=(",", ":")).encode("ascii") + b"\n")
            except OSError:
                with self._lock:
                    before = self._dropped.get(uid, (0, 0))
                    self._dropped[uid] = before[0] + lines, before[1] + size
        return not self._dropped

    def _write(self, uid: int, data: bytes) -> None:
        path = os.path.join(self._directory, f"verdicts-{uid}.jsonl")
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640)
        try:
            before = os.fstat(fd).st_size
            if os.write(fd, data) != len(data):
                os.ftruncate(fd, before)  # half a line would spoil the next one, too
                raise OSError(28, "No space left on device")
        finally:
            os.close(fd)
        if not before:
            self._make_room()
        if before + len(data) > _FILE_BYTES:
            os.rename(path, os.path.join(self._directory, f"verdicts-{uid}-{time.time_ns()}.jsonl"))
            self._make_room()

    def _make_room(self) -> None:
        """Remove files until all together are within bounds: the oldest of a user who has too many, and then always
        the oldest of whoever has most."""
        kept: dict[int, list[tuple[int, str, int]]] = {}
        for name in os.listdir(self._directory):
            match = _NAME.fullmatch(name)
            if match is not None:
                with contextlib.suppress(OSError):
                    size = os.stat(os.path.join(self._directory, name)).st_size
                    kept.setdefault(int(match[1]), []).append((int(match[2] or 1 << 63), name, size))
        for files in kept.values():
            files.sort()
            while len(files) > _USERS_FILES_MAX:
                self._remove(files.pop(0)[1])
        while kept and (
            sum(size for files in kept.values() for _, _, size in files) > _TOTAL_BYTES
            or sum(map(len, kept.values())) > _TOTAL_FILES
        ):
            most = max(kept, key=lambda uid: sum(size for _, _, size in kept[uid]))
            self._remove(kept[most].pop(0)[1])
            if not kept[most]:
                del kept[most]

    def _remove(self, name: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(self._directory, name))


def _content(line: bytes) -> Mapping[str, Any]:
    """Return what the line says, in the fields that it may fill; a line that is none is told as such."""
    nothing = {"origin": "user", "kind": None, "plan": None}
    if len(line) > LINE_MAX:
        return {**nothing, "said": {"left out": f"{len(line)} bytes"}}
    try:
        value = json.loads(line)
        json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError):  # an infinity is no JSON for others
        value = None
    if (
        isinstance(value, dict)
        and value.keys() == {"origin", "kind", "plan", "said"}
        and value["origin"] in ORIGINS
        and all(value[name] is None or _is_name(value[name]) for name in ("kind", "plan"))
        and isinstance(value["said"], dict)
    ):
        return value
    return {**nothing, "said": {"unreadable": f"{len(line)} bytes"}}


def _is_name(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 256 and value.isprintable()
