"""A TCP connection between two nodes of a vetting, of which both prove that they know the run's token.

The server listens on one address, never on all of them, and answers nobody without the token: each side sends a
nonce, and the other's HMAC over it. A connection that says nothing is closed. Runs under Python 3.8.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import socket
import struct
import threading
import time

TOKEN_MIN = 16
_NONCE = 16
_PROOF = 32
_AUTH_S = 2.0
_CONNECTIONS_MAX = 64
_TRANSFER_MAX = 16 << 30
_BLOCK = 1 << 20
_ORDER = struct.Struct("!cQ")


class LinkError(Exception):
    """The other side cannot be reached, is not who it should be, or went away."""


class Server:
    """Answers pings, sends and takes bytes, tells its clock: for those who know the token."""

    def __init__(self, address: str, token: bytes, idle_s: float = 60.0) -> None:
        if len(token) < TOKEN_MIN:
            raise ValueError(f"the token has fewer than {TOKEN_MIN} bytes")
        if address in ("", "0.0.0.0", "::"):  # noqa: S104 - this is where it is refused
            raise ValueError("a pair server listens on one address, not on all")
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._token = token
        self._idle_s = idle_s
        self._room = threading.BoundedSemaphore(_CONNECTIONS_MAX)
        self._listener = socket.socket(family, socket.SOCK_STREAM)
        self._listener.bind((address, 0))
        self._listener.listen(_CONNECTIONS_MAX)
        self.port: int = self._listener.getsockname()[1]

    def serve(self) -> None:
        """Serve until `close`; each connection in a thread of its own."""
        while True:
            try:
                channel, _ = self._listener.accept()
            except OSError:
                return
            if not self._room.acquire(blocking=False):
                channel.close()
                continue
            threading.Thread(target=self._talk, args=(channel,), daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def close_own(self) -> None:
        """Close this process's copy of the socket; one that was forked goes on listening."""
        self._listener.close()

    def _talk(self, channel: socket.socket) -> None:
        try:
            with channel:
                channel.settimeout(_AUTH_S)
                channel.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                _prove(channel, self._token, b"server", b"client")
                channel.settimeout(self._idle_s)
                while True:
                    self._obey(channel)
        except (OSError, LinkError):
            pass
        finally:
            self._room.release()

    def _obey(self, channel: socket.socket) -> None:
        order, size = _ORDER.unpack(_receive(channel, _ORDER.size))
        if size > _TRANSFER_MAX:
            raise LinkError("too much was asked for")
        if order == b"p":
            channel.sendall(b"p")
        elif order == b"t":
            channel.sendall(struct.pack("!d", time.time()))
        elif order == b"s":  # the other sends
            _drop(channel, size)
            channel.sendall(b"s")
        elif order == b"r":
            _pour(channel, size)
        else:
            raise LinkError("an order that does not exist")


class Link:
    """The other end of such a connection."""

    def __init__(self, host: str, port: int, token: bytes, timeout_s: float) -> None:
        try:
            self._channel = socket.create_connection((host, port), timeout=timeout_s)
            self._channel.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _prove(self._channel, token, b"client", b"server")
        except OSError as error:
            raise LinkError(f"cannot connect to {host}:{port}: {error.strerror or error}") from None

    def close(self) -> None:
        """Hang up."""
        self._channel.close()

    def ping(self, count: int) -> list[float]:
        """Return the round trip times of `count` single bytes, in seconds."""
        found = []
        for _ in range(count):
            started = time.monotonic()
            self._order(b"p", 0)
            _receive(self._channel, 1)
            found.append(time.monotonic() - started)
        return found

    def offset(self) -> float:
        """Return how far the other's clock is ahead, in seconds, as the quickest of five answers tells."""
        best = (float("inf"), 0.0)
        for _ in range(5):
            sent = time.time()
            self._order(b"t", 0)
            (theirs,) = struct.unpack("!d", _receive(self._channel, 8))
            received = time.time()
            best = min(best, (received - sent, theirs - (sent + received) / 2))
        return best[1]

    def send(self, size: int) -> float:
        """Send `size` bytes and return how long it took until the other had them, in seconds."""
        started = time.monotonic()
        self._order(b"s", size)
        _pour(self._channel, size)
        _receive(self._channel, 1)
        return time.monotonic() - started

    def receive(self, size: int) -> float:
        """Fetch `size` bytes and return how long it took, in seconds."""
        started = time.monotonic()
        self._order(b"r", size)
        _drop(self._channel, size)
        return time.monotonic() - started

    def _order(self, order: bytes, size: int) -> None:
        self._channel.sendall(_ORDER.pack(order, size))


def _prove(channel: socket.socket, token: bytes, own: bytes, other: bytes) -> None:
    """Prove to each other that both know the token, without sending it. Raises LinkError."""
    nonce = os.urandom(_NONCE)
    channel.sendall(nonce)
    theirs = _receive(channel, _NONCE)
    if theirs == nonce:
        raise LinkError("the other side only sends back what it gets")
    channel.sendall(hmac.new(token, own + nonce + theirs, hashlib.sha256).digest())
    expected = hmac.new(token, other + theirs + nonce, hashlib.sha256).digest()
    if not hmac.compare_digest(_receive(channel, _PROOF), expected):
        raise LinkError("the other side does not know the token of this vetting")


def _receive(channel: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = channel.recv(size - len(data))
        if not piece:
            raise LinkError("the other side hung up")
        data += piece
    return data


def _drop(channel: socket.socket, size: int) -> None:
    buffer = bytearray(_BLOCK)
    view = memoryview(buffer)
    while size:
        got = channel.recv_into(view[: min(size, _BLOCK)])
        if not got:
            raise LinkError("the other side hung up")
        size -= got


def _pour(channel: socket.socket, size: int) -> None:
    view = memoryview(bytearray(_BLOCK))
    while size:
        size -= channel.send(view[: min(size, _BLOCK)])
