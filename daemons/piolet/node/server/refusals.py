"""Connections that were told no, kept until the peer has read it: a close with its message unread loses that.

So many are kept. Where there are more, one of the user goes who has most of them: nobody loses a sentence to another.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
from collections import Counter

from piolet.system import peer
from piolet.transport import wire

_WAITING_MAX = 128


class Refusals:
    """Refuses connections in the loop of `selector`."""

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self._selector = selector
        self._waiting: dict[socket.socket, int] = {}  # with its user, the oldest first

    def refuse(self, channel: socket.socket, message: str, hint: str | None) -> None:
        """Say no to `channel`, which does not block and is in no loop, and take it over."""
        while len(self._waiting) >= _WAITING_MAX:
            most = Counter(self._waiting.values()).most_common(1)[0][0]
            self._drop(next(one for one, uid in self._waiting.items() if uid == most))
        with contextlib.suppress(OSError):
            channel.send(wire.encode_error(message, hint))
        self._waiting[channel] = peer.of(channel).uid
        self._selector.register(channel, selectors.EVENT_READ, lambda: self._on_refused(channel))

    def _on_refused(self, channel: socket.socket) -> None:
        # Once it is read that somebody has sent, or has gone, a close loses nothing.
        if channel in self._waiting:
            with contextlib.suppress(OSError):
                channel.recv(16)
            self._drop(channel)

    def _drop(self, channel: socket.socket) -> None:
        del self._waiting[channel]
        self._selector.unregister(channel)
        channel.close()
