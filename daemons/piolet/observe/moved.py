"""Asks a process that may read /proc/PID/io of all users for the bytes that processes moved, and is that process.

A question is a number and pids, an answer the number and, of each process that is there, pid, bytes read and bytes
written: little-endian, one message each. Nothing else can be asked, and nothing of a user's comes into it: numbers of
the kernel's.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import time
from collections.abc import Collection, Mapping

from piolet.api import Place
from piolet.api.sources import moved_in

PIDS_MAX = 4096
BUFFER = 1 << 20
_NUMBER, _PID, _MOVED = struct.Struct("<I"), struct.Struct("<I"), struct.Struct("<IQQ")


class Mover:
    """Asks; for one thread. What is not answered within `within_s` is not known."""

    def __init__(self, channel: socket.socket, within_s: float = 2.0) -> None:
        self._channel = channel
        self._within_s = within_s
        self._number = 0

    def ask(self, pids: Collection[int]) -> Mapping[int, tuple[float, float]]:
        """Return bytes read and written by process; as Place.ask."""
        if not pids:
            return {}
        self._number = (self._number + 1) & 0xFFFFFFFF
        question = _NUMBER.pack(self._number) + b"".join(_PID.pack(pid) for pid in list(pids)[:PIDS_MAX])
        deadline = time.monotonic() + self._within_s
        with contextlib.suppress(OSError):
            self._channel.send(question, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            while select.select([self._channel], [], [], max(0.0, deadline - time.monotonic()))[0]:
                answer = self._channel.recv(BUFFER)
                if not answer:
                    return {}
                if answer[: _NUMBER.size] == question[: _NUMBER.size]:
                    return {pid: (float(r), float(w)) for pid, r, w in _MOVED.iter_unpack(answer[_NUMBER.size :])}
        return {}


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
    """Return the two ends, with room for the longest messages."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
        os.set_inheritable(end.fileno(), False)
    return ends
