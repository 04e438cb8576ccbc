"""Who is at the other end of a Unix socket, as the kernel says: struct ucred of unix(7)."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from typing import NamedTuple

from piolet.base.errors import PioletError

UCRED = struct.Struct("=iII")
_SIOCUNIXFILE = 0x89E0
_SO_PEERPIDFD = 77

File = tuple[int, int]
"""The file of a listening socket: its device and inode."""


class Peer(NamedTuple):
    """The process that connected; 0 and 4294967295 where the kernel cannot tell it in this namespace."""

    pid: int
    uid: int
    gid: int


def of(channel: socket.socket) -> Peer:
    """Return who connected `channel`. Raises OSError."""
    return Peer(*UCRED.unpack(channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size)))


def file_of(path: str | os.PathLike[str]) -> File:
    """Return the file of the socket that listens at `path`. Raises OSError."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


def listens(path: str | os.PathLike[str]) -> bool:
    """Return whether somebody listens at the socket `path`, whose queue may be full. Never waits.

    Raises OSError: that cannot be told; in doubt nobody may take its place.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(os.fspath(path))
        except BlockingIOError:
            return True
        except (ConnectionRefusedError, FileNotFoundError):
            return False
    return True


def of_accepted(channel: socket.socket, listener: File) -> Peer:
    """Return who connected to that listener, where `channel` came from a process that is not to be believed.

    That process could connect to the listener itself, and hand over its own end: the kernel says of that one that
    the peer is whoever made the listener, which is root. Only an accepted end has the listener's file, which the
    kernel opens for CAP_NET_ADMIN. Raises OSError.
    """
    try:
        file = fcntl.ioctl(channel, _SIOCUNIXFILE)
    except FileNotFoundError:
        raise PermissionError("the connection is not one that was made to pioletd") from None
    try:
        status = os.fstat(file)
    finally:
        os.close(file)
    if (status.st_dev, status.st_ino) != listener:
        raise PermissionError("the connection is not one that was made to pioletd")
    return of(channel)


def pidfd_of(channel: socket.socket, pid: int) -> int:
    """Return a descriptor of the process that connected; before Linux 6.5 of that which has its number by now.

    Raises PioletError: it is gone.
    """
    try:
        return channel.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError:
        pass
    try:
        return os.pidfd_open(pid)
    except OSError:
        raise PioletError("the task that asked is gone") from None
