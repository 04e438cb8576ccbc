"""Who is at the other end of a Unix socket, as the kernel says: struct ucred of unix(7)."""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

UCRED = struct.Struct("=iII")


class Peer(NamedTuple):
    """The process that connected; 0 and 4294967295 where the kernel cannot tell it in this namespace."""

    pid: int
    uid: int
    gid: int


def of(channel: socket.socket) -> Peer:
    """Return who connected `channel`. Raises OSError."""
    return Peer(*UCRED.unpack(channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size)))
