"""Tells the service manager that a daemon is ready, as sd_notify(3) does."""

from __future__ import annotations

import contextlib
import os
import socket


def ready() -> None:
    """Say READY=1 where somebody waits for it, once: what this process starts from now on finds no variable."""
    address = os.environ.pop("NOTIFY_SOCKET", "")
    if not address:
        return
    # A manager that has gone away is no reason to end.
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.connect("\0" + address[1:] if address[0] == "@" else address)
        channel.send(b"READY=1")
