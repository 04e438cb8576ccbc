"""Tells the service manager that a daemon is ready, as sd_notify(3) does."""

from __future__ import annotations

import contextlib
import os
import socket


def ready() -> None:
    """Say READY=1 where somebody waits for it, once: what this process starts from now on finds no variable."""
    _say(b"READY=1", os.environ.pop("NOTIFY_SOCKET", ""))


def extend(seconds: float) -> None:
    """Say that what begins goes on, and that nobody shall give up within so many seconds."""
    _say(b"EXTEND_TIMEOUT_USEC=%d" % (seconds * 1e6), os.environ.get("NOTIFY_SOCKET", ""))


def _say(text: bytes, address: str) -> None:
    if not address:
        return
    # A manager that has gone away is no reason to end.
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.connect("\0" + address[1:] if address[0] == "@" else address)
        channel.send(text)
