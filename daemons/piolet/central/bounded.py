"""HTTP/1.1 whose connections are bounded: so many, so many of one machine, and each request's head within seconds.

uvicorn waits for a request's head for ever; the application bounds its body. What is known of the other end goes to the
application as `request.state`: `uid` of a process of this machine, `names` in a certificate.
"""

from __future__ import annotations

import asyncio
import collections
import socket
import struct
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from piolet.central.doors import names_in

HEAD_S = 10.0
OF_ONE_MOST = 64
_OF: collections.Counter[str] = collections.Counter()


class Bounded(H11Protocol):
    """One connection."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, or close it where its machine has too many."""
        super().connection_made(transport)
        self._late: asyncio.TimerHandle | None = None
        self._where = str(self.client[0]) if self.client else "here"
        _OF[self._where] += 1
        self.app_state = {**self.app_state, "channel": _channel(transport)}
        if _OF[self._where] > OF_ONE_MOST and self._where != "here":
            transport.abort()
            return
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget a connection."""
        _OF[self._where] -= 1
        if _OF[self._where] <= 0:
            del _OF[self._where]
        self._came()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes; whoever has begun a request ends its head in time."""
        if self._idle() and self._late is None:
            self._expect()
        super().data_received(data)
        if not self._idle():
            self._came()

    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _expect(self) -> None:
        self._late = self.loop.call_later(HEAD_S, self.transport.abort)

    def _came(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


def _channel(transport: asyncio.Transport) -> dict[str, Any]:
    """Return what the kernel or the TLS layer knows of the other end."""
    ours = transport.get_extra_info("socket")
    if ours is not None and ours.family == socket.AF_UNIX:
        _, uid, _ = struct.unpack("3i", ours.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
        return {"uid": uid & 0xFFFFFFFF}
    secured = transport.get_extra_info("ssl_object")
    return {"names": names_in(secured.getpeercert())} if secured is not None else {}
