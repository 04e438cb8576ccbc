"""Connections that were told no, kept until the peer has read it: a close with its message unread loses that."""

from __future__ import annotations

import contextlib
import selectors
import socket

from piolet import wire

_WAITING_MAX = 128


class Refusals:
    """Refuses connections in the loop of `selector`; the oldest one is closed when too many wait."""

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self._selector = selector
        self._waiting: list[socket.socket] = []

    def refuse(self, channel: socket.socket, message: str, hint: str | None) -> None:
        """Say no to `channel`, which does not block and is in no loop, and take it over."""
        while len(self._waiting) >= _WAITING_MAX:
            self._drop(self._waiting[0])
        with contextlib.suppress(OSError):
            channel.send(wire.encode_error(message, hint))
        self._waiting.append(channel)
        self._selector.register(channel, selectors.EVENT_READ, lambda: self._on_refused(channel))

    def _on_refused(self, channel: socket.socket) -> None:
        # Once it is read that somebody has sent, or has gone, a close loses nothing.
        if channel in self._waiting:
            with contextlib.suppress(OSError):
                channel.recv(16)
            self._drop(channel)

    def _drop(self, channel: socket.socket) -> None:
        self._waiting.remove(channel)
        self._selector.unregister(channel)
        channel.close()
