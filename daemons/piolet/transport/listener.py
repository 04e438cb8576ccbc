"""Listening sockets of daemons: made where a dead daemon's was, accepted from, and refused at.

asyncio accepts by itself (images/service.py), from a socket that is made here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import socket
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from piolet.system import peer

WAITING_MAX = 128
"""So many connections that were told no are kept at once."""

_PAUSE_S = 0.05

Take = Callable[[socket.socket, peer.Peer], None]
"""Takes a connection over, which does not block, and is told who made it."""


def clear_path(path: str, *, sure: bool = True) -> bool:
    """Remove the socket of a dead daemon from `path`, and return True; False: it is a living one's, and stays.

    Raises OSError: it cannot be removed, or, where `sure`, it cannot be told whose it is, and nothing was removed.
    """
    if not Path(path).is_socket():
        return True
    try:
        if peer.listens(path):
            return False
    except OSError:
        if sure:
            raise
    Path(path).unlink(missing_ok=True)
    return True


def listen(path: str, mode: int, backlog: int) -> socket.socket:
    """Return a socket that listens at `path`, with this mode before anybody can connect. Raises OSError."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        before = os.umask(0o777)
        try:
            listening.bind(path)
        finally:
            os.umask(before)
        os.chmod(path, mode)
        listening.listen(backlog)
        listening.setblocking(False)
    except OSError:
        listening.close()
        raise
    return listening


class Listener:
    """Accepts what connects to `listening` in the loop of `selector`, at most `at_once` in a turn.

    Each connection goes to `take`. `what` names one in the log.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        listening: socket.socket,
        take: Take,
        log: logging.Logger,
        *,
        at_once: int = 1,
        what: str = "a connection",
    ) -> None:
        self._listening = listening
        self._take = take
        self._log = log
        self._at_once = at_once
        self._what = what
        listening.setblocking(False)
        selector.register(listening, selectors.EVENT_READ, self.accept)

    def accept(self) -> None:
        """Take those who wait."""
        for _ in range(self._at_once):
            try:
                channel, _ = self._listening.accept()
            except BlockingIOError:
                return
            except OSError as error:
                # Out of descriptors: the connection stays in the queue, and a loop without a pause would spin.
                self._log.error("cannot take %s: %s", self._what, error.strerror)
                time.sleep(_PAUSE_S)
                return
            channel.setblocking(False)
            self._take(channel, peer.of(channel))


class Refusals:
    """Connections in the loop of `selector` that were told no, kept until the peer has read it.

    A close with the peer's message unread loses what it was told. So many are kept; where there are more, one of the
    user goes who has most of them: nobody loses a sentence to another.
    """

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self._selector = selector
        self._waiting: dict[socket.socket, int] = {}  # with its user, the oldest first

    def refuse(self, channel: socket.socket, message: bytes) -> None:
        """Say no to `channel`, which does not block and is in no loop, and take it over."""
        while len(self._waiting) >= WAITING_MAX:
            most = Counter(self._waiting.values()).most_common(1)[0][0]
            self._drop(next(one for one, uid in self._waiting.items() if uid == most))
        with contextlib.suppress(OSError):
            channel.send(message)
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
