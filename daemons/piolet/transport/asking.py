"""Asks the central service: a request over HTTP/1.1, signed by MUNGE or a client's certificate, and its answer.

The service's address is `http://HOST:PORT`, `https://HOST:PORT`, or `unix:/PATH` on its own machine. Every request has
one connection and one deadline.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from piolet.base.errors import PioletError
from piolet.system import munge
from piolet.transport import statements
from piolet.transport.statements import ANSWER_HEADER, SCHEME, Statement

ANSWER_MAX = 64 << 20
_SKEWED = 401


class CentralError(PioletError):
    """The central service does not answer, is not who it should be, or refuses.

    status   of its answer; 0: there was none that can be believed
    said     what the answer says besides
    """

    def __init__(self, message: str, hint: str | None = None, status: int = 0, said: Any = None) -> None:
        super().__init__(message, hint)
        self.status = status
        self.said = said if isinstance(said, dict) else {}


@dataclass(frozen=True)
class Peer:
    """Where the central service is, and how both sides know each other.

    uid          the number of its account: who an answer must be of
    socket       munged's; '': the usual one
    authority    file with the certificates of those who sign both sides' ones; '': the system's, for https
    certificate, key   files of this side's own: then no MUNGE is used
    timeout_s    for a request as a whole
    """

    url: str
    uid: int
    socket: str = ""
    authority: str = ""
    certificate: str = ""
    key: str = ""
    timeout_s: float = 30.0


@dataclass(frozen=True)
class Answer:
    """What the service said; `offset` is how far this machine's clock is ahead of the service's, in seconds."""

    said: dict[str, Any]
    offset: float


class Asker:
    """Asks one service."""

    def __init__(self, peer: Peer, clock: Callable[[], float] = time.time) -> None:
        self._peer = peer
        self._clock = clock

    def ask(
        self, method: str, target: str, body: bytes = b"", *, cluster: str = "", node: str = "", kind: str = ""
    ) -> Answer:
        """Return the answer, an object of JSON. Raises CentralError, MungeError.

        kind   what the body is, where there is one: its Content-Type
        """
        statement = Statement(method, target, cluster, node, statements.digest(body), "", self._clock())
        try:
            return self._once(statement, body, kind)
        except CentralError as error:
            nonce = error.said.get("nonce")
            if error.status != _SKEWED or not isinstance(nonce, str):
                raise
        # The clocks are so far apart that MUNGE notices no replay: the service asks for a number of its own instead.
        return self._once(Statement(method, target, cluster, node, statement.digest, nonce, self._clock()), body, kind)

    def _once(self, statement: Statement, body: bytes, kind: str) -> Answer:
        peer = self._peer
        headers = {"Connection": "close", "User-Agent": "piolet"}
        credential = ""
        if not peer.certificate and not peer.url.startswith("unix:"):
            credential = munge.encode(statement.payload(), for_uid=peer.uid, socket=peer.socket)
            headers["Authorization"] = f"{SCHEME} {credential}"
        else:
            headers["Piolet-Statement"] = statement.payload().decode().replace("\n", " | ")
        if body:
            headers["Content-Type"] = kind or "application/octet-stream"
        before = self._clock()
        status, signed, text = self._exchange(statement, headers, body)
        offset_span = (before, self._clock())
        if credential:
            self._believe(signed, credential, status, text)
        try:
            said = json.loads(text)
        except (ValueError, RecursionError):
            said = None
        if not isinstance(said, dict):
            raise CentralError(f"the central service {peer.url} answers with no JSON (status {status})", status=status)
        if status != 200:
            raise CentralError(
                f"the central service refuses: {said.get('error', f'status {status}')}", said.get("hint"), status, said
            )
        now = said.get("time")
        return Answer(said, sum(offset_span) / 2 - now if isinstance(now, int | float) else 0.0)

    def _exchange(self, statement: Statement, headers: dict[str, str], body: bytes) -> tuple[int, str, bytes]:
        peer = self._peer
        try:
            connection = self._connection()
            try:
                with _deadline(connection, peer.timeout_s):
                    connection.request(statement.method, statement.target, body or None, headers)
                    answer = connection.getresponse()
                    text = answer.read(ANSWER_MAX + 1)
                if len(text) > ANSWER_MAX:
                    raise CentralError(f"the central service {peer.url} answers with more than {ANSWER_MAX} bytes")
                return answer.status, answer.getheader(ANSWER_HEADER, ""), text
            finally:
                connection.close()
        except (OSError, http.client.HTTPException) as error:
            why = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise CentralError(
                f"the central service {peer.url} does not answer: {why}",
                "does piolet-central run there, and may this machine reach its port?",
            ) from None

    def _connection(self) -> http.client.HTTPConnection:
        peer = self._peer
        place = urllib.parse.urlsplit(peer.url)
        if place.scheme == "unix":
            return _Local(place.path, peer.timeout_s)
        if place.scheme == "https":
            context = ssl.create_default_context(cafile=peer.authority or None)
            if peer.certificate:
                context.load_cert_chain(peer.certificate, peer.key or None)
            return http.client.HTTPSConnection(place.netloc, timeout=peer.timeout_s, context=context)
        if peer.certificate:
            raise CentralError("a certificate is shown over https alone", "write https:// in [central] url")
        return http.client.HTTPConnection(place.netloc, timeout=peer.timeout_s)

    def _believe(self, signed: str, credential: str, status: int, text: bytes) -> None:
        """Raise CentralError if the answer is not the central service's, to this request."""
        peer = self._peer
        if not signed:
            raise CentralError(
                f"whoever listens at {peer.url} signs nothing (status {status})",
                f"is it piolet-central, has its account there the number {peer.uid}, as here, and does it use MUNGE?",
            )
        found = munge.decode(signed, peer.socket, late=True)  # bound to this request, so that it is no replay
        if found.uid != peer.uid:
            raise CentralError(
                f"who answers at {peer.url} is of uid {found.uid}; the central service's account has {peer.uid} here",
                "give the account of [central] account the same number on all machines",
            )
        if found.payload != statements.answer(credential, status, text):
            raise CentralError(f"the answer of {peer.url} is to another request, or was changed on its way")


@contextlib.contextmanager
def _deadline(connection: http.client.HTTPConnection, seconds: float) -> Iterator[None]:
    """End a connection after so many seconds, whoever sends a byte now and then at its other end."""

    def end() -> None:
        with contextlib.suppress(OSError, AttributeError):
            connection.sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class _Local(http.client.HTTPConnection):
    """HTTP over a socket of this machine."""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
