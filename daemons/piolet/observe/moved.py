"""Asks a process that is a user how many bytes that user's processes moved, and is that process.

/proc/PID/io may be read by the processes' user, or by who may read all files and trace all processes. So each user with
steps has one process here that is the user and reads nothing else (decision 136). Root's process starts it
(node/root/observing.py): it is sent a user's and a group's number, and one end of a pair of sockets.

A question is a number and pids, an answer the number and, of each process that could be read, pid, bytes read and
bytes written: little-endian, one message each. A user may stop this process or end it, and so hold up who asks for
as long as `within_s`, once in AGAIN_S: and has then no figures of that kind.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Collection, Mapping

from piolet.api import Place
from piolet.api.sources import moved_in

PIDS_MAX = 4096
BUFFER = 1 << 18
AGAIN_S = 600.0
LINGER_S = 10.0  # short steps follow each other, and starting a process takes longer than what it is asked
WHO = struct.Struct("<II")
_NUMBER, _PID, _MOVED = struct.Struct("<I"), struct.Struct("<I"), struct.Struct("<IQQ")
_Moved = Mapping[int, tuple[float, float]]


class Movers:
    """The processes that are asked, by user; `root` leads to who starts them."""

    def __init__(self, root: socket.socket, within_s: float = 0.5) -> None:
        self._root = root
        self._within_s = within_s
        self._number = 0
        self._channels: dict[tuple[int, int], socket.socket] = {}
        self._seen: dict[tuple[int, int], float] = {}
        self._not_before: dict[int, float] = {}
        self._lock = threading.Lock()

    def of(self, uid: int, gid: int) -> Callable[[Collection[int]], _Moved]:
        """Return what asks for a user's processes: as Place.ask. Root's are not told."""
        return lambda pids: self._ask((uid, gid), pids)

    def keep(self, users: Collection[tuple[int, int]]) -> None:
        """End the processes of those who were not among the users for LINGER_S."""
        now = time.monotonic()
        self._seen |= dict.fromkeys(users, now)
        with self._lock:
            for who in [who for who in self._channels if now - self._seen.setdefault(who, now) >= LINGER_S]:
                self._channels.pop(who).close()
                del self._seen[who]

    def end(self) -> None:
        """End all of them."""
        with self._lock:
            while self._channels:
                self._channels.popitem()[1].close()

    def _ask(self, who: tuple[int, int], pids: Collection[int]) -> _Moved:
        if not pids or who[0] == 0 or time.monotonic() < self._not_before.get(who[0], 0.0):
            return {}
        with self._lock:
            try:
                if who not in self._channels:
                    self._channels[who] = self._start(who)
                return self._answer(self._channels[who], list(pids)[:PIDS_MAX])
            except OSError:
                if who in self._channels:
                    self._channels.pop(who).close()
                self._not_before[who[0]] = time.monotonic() + AGAIN_S
                return {}

    def _start(self, who: tuple[int, int]) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            for end in (ours, theirs):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
            socket.send_fds(self._root, [WHO.pack(*who)], [theirs.fileno()], socket.MSG_DONTWAIT)
        return ours

    def _answer(self, channel: socket.socket, pids: list[int]) -> _Moved:
        """Return what the process says. Raises OSError: it says nothing in time, or has ended."""
        self._number = (self._number + 1) & 0xFFFFFFFF
        number = _NUMBER.pack(self._number)
        channel.send(number + b"".join(map(_PID.pack, pids)), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        deadline = time.monotonic() + self._within_s
        while select.select([channel], [], [], max(0.0, deadline - time.monotonic()))[0]:
            answer = channel.recv(BUFFER, socket.MSG_DONTWAIT)
            if answer[: _NUMBER.size] != number or (len(answer) - _NUMBER.size) % _MOVED.size:
                raise OSError(0, "it has ended, or answers what was not asked")
            told = _MOVED.iter_unpack(answer[_NUMBER.size :])
            return {pid: (float(read), float(write)) for pid, read, write in told if pid in pids}
        raise TimeoutError


def serve(channel: socket.socket) -> None:
    """Answer until the other end closes."""
    place = Place()
    while question := channel.recv(BUFFER):
        answer = [question[: _NUMBER.size]]
        for (pid,) in _PID.iter_unpack(question[_NUMBER.size :]):
            with contextlib.suppress(OSError, ValueError, KeyError):
                read, write = moved_in(place.text(f"/proc/{pid}/io"))
                answer.append(_MOVED.pack(pid, int(read), int(write)))
        channel.send(b"".join(answer), socket.MSG_NOSIGNAL)


def pair() -> tuple[socket.socket, socket.socket]:
    """Return the two ends over which processes are asked for."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        os.set_inheritable(end.fileno(), False)
    return ends
