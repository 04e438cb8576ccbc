"""Who asks: what stands between the network and everything else of the service.

Whatever arrives has been said by somebody: a MUNGE credential whose payload is the request's statement, a client's
certificate, or a process of this machine, of which the kernel says the uid. A request that nobody vouches for is
refused before its body is read.
"""

from __future__ import annotations

import hmac
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from piolet.base.errors import PioletError, WireError
from piolet.central.places import Places
from piolet.system import munge
from piolet.transport import statements
from piolet.transport.statements import Statement

_NONCE_S = 60.0
_NONCES_MOST = 10_000
_NOBODYS = ("127.", "0.")
MUNGE, CERTIFICATE = "munge", "certificate"


class RefusedError(PioletError):
    """A request is refused.

    status      of HTTP
    said        what the answer says besides; `nonce` is a number that the same request may be signed with, where only
                the clocks are in the way, `have` what is here where a batch does not follow upon it
    credential  the request's, if it was read: the answer is signed for who made it
    """

    def __init__(self, status: int, message: str, hint: str | None = None, **said: Any) -> None:
        super().__init__(message, hint)
        self.status = status
        self.said = said
        self.credential: tuple[str, int] | None = None


@dataclass(frozen=True)
class Caller:
    """Who asks, and what was signed.

    uid         of who asks; None: a certificate spoke, for a node
    statement   what was signed; None: a process of this machine asks, whose request nobody could change
    credential  the request's, and for whom its answer is signed; None: the channel vouches for both sides
    addresses   where the request was signed: of MUNGE, or the names in a certificate
    """

    uid: int | None
    statement: Statement | None
    credential: tuple[str, int] | None
    addresses: frozenset[str]


class Doors:
    """Knows who may send and ask.

    own_uid       of this service: for whom credentials have to be
    forwarder     the uid that nodes send as
    cluster       ClusterName
    """

    def __init__(
        self,
        own_uid: int,
        forwarder: int,
        cluster: str,
        places: Places,
        socket: str = "",
        trust: str = MUNGE,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._own_uid, self._forwarder, self._cluster = own_uid, forwarder, cluster
        self._places, self._socket, self._trust, self._clock = places, socket, trust, clock
        self._secret = secrets.token_bytes(32)
        self._used: dict[str, float] = {}
        self._lock = threading.Lock()

    def caller(self, method: str, target: str, headers: dict[str, str], channel: dict[str, Any]) -> Caller:
        """Return who asks for this; takes as long as munged takes.

        channel   what is known of the connection: 'uid' of a process of this machine, 'names' in a certificate

        Raises RefusedError.
        """
        if "uid" in channel:
            return Caller(channel["uid"], None, None, frozenset())
        scheme, _, credential = headers.get("authorization", "").partition(" ")
        if scheme == statements.SCHEME and self._trust == MUNGE:
            return self._by_munge(method, target, credential.strip())
        if self._trust == CERTIFICATE and channel.get("names"):
            text = headers.get("piolet-statement", "").replace(" | ", "\n")
            statement = self._parsed(text.encode("ascii", "replace"), method, target)
            return Caller(None, statement, None, frozenset(channel["names"]))
        wanted = "a MUNGE credential" if self._trust == MUNGE else "a certificate"
        raise RefusedError(401, f"the request comes without {wanted}")

    def _by_munge(self, method: str, target: str, credential: str) -> Caller:
        try:
            found = munge.decode(credential, self._socket, late=True)
        except munge.MungeError as error:
            status = 503 if error.hint and "munged" in error.hint else 401
            raise RefusedError(status, error.message, error.hint) from None
        signed = (credential, found.uid)
        try:
            if found.for_uid != self._own_uid:
                raise RefusedError(401, "the credential is not for the central service alone")
            statement = self._parsed(found.payload, method, target)
            if found.late and not self._is_fresh(statement.nonce):
                raise RefusedError(
                    401, f"the credential is {abs(found.decoded - found.encoded)} s away from this clock",
                    "compare the clocks of both machines", nonce=self._nonce(),
                )  # fmt: skip
        except RefusedError as refusal:
            refusal.credential = signed
            raise
        return Caller(found.uid, statement, signed, frozenset((found.address,)))

    def _parsed(self, payload: bytes, method: str, target: str) -> Statement:
        try:
            statement = Statement.parse(payload)
        except WireError as error:
            raise RefusedError(400, error.message) from None
        if (statement.method, statement.target) != (method, target):
            raise RefusedError(401, "another request was signed than this one")
        return statement

    def sender(self, caller: Caller) -> Statement:
        """Return the statement of a forwarder that sends what is of its own node. Raises RefusedError, SlurmError."""
        statement = caller.statement
        if statement is None:
            raise RefusedError(403, "records come from nodes, by the network")
        if caller.uid is not None and caller.uid != self._forwarder:
            raise RefusedError(
                403,
                f"records come from uid {self._forwarder}, the forwarder's account here, and not from {caller.uid}",
                "the account of [forward] account needs the same number on all machines",
            )
        if statement.cluster != self._cluster:
            raise RefusedError(403, f"the records are of the cluster {statement.cluster!r}; this is {self._cluster!r}")
        if not statement.node:
            raise RefusedError(403, "the request names no node")
        if caller.uid is None:
            if statement.node not in caller.addresses:
                raise RefusedError(403, f"the certificate is not for node {statement.node}")
            return statement
        there = self._places.of(statement.node)
        if not there:
            raise RefusedError(
                403, f"there is no node {statement.node} in this cluster, or its name has no address",
                "Slurm's NodeAddr or a line in [central] addresses says where a node is",
            )  # fmt: skip
        if not there & caller.addresses:
            signed = min(caller.addresses)
            hint = "if that is the node's address for MUNGE, write it into [central] addresses"
            if signed.startswith(_NOBODYS):  # other nodes would have the same one
                hint = (
                    "munged has no address of the node: its host name has to mean one when munged starts, or --origin"
                )
            raise RefusedError(
                403, f"a batch of node {statement.node} was signed at {signed}, and not at {min(there)}", hint
            )
        return statement

    def _nonce(self) -> str:
        now = f"{self._clock():.3f}"
        return f"{now}.{self._seal(now)}.{secrets.token_hex(8)}"

    def _seal(self, text: str) -> str:
        return hmac.new(self._secret, text.encode(), "sha256").hexdigest()[:32]

    def _is_fresh(self, nonce: str) -> bool:
        """Return whether this service gave a nonce, not long ago, and nobody used it."""
        now = self._clock()
        words = nonce.rsplit(".", 2)
        if len(words) != 3 or not hmac.compare_digest(words[1], self._seal(words[0])):
            return False
        if abs(now - float(words[0])) > _NONCE_S:
            return False
        with self._lock:
            self._used = {one: until for one, until in self._used.items() if until > now}
            if nonce in self._used or len(self._used) >= _NONCES_MOST:
                return False
            self._used[nonce] = now + 2 * _NONCE_S
        return True

    def sign(self, credential: tuple[str, int], status: int, body: bytes) -> str:
        """Return the credential of an answer. Raises MungeError."""
        text, uid = credential
        return munge.encode(statements.answer(text, status, body), for_uid=uid, socket=self._socket)


def same_body(statement: Statement, body: bytes) -> None:
    """Raise RefusedError if another body was signed than this one."""
    if not hmac.compare_digest(statement.digest, statements.digest(body)):
        raise RefusedError(401, "another body was signed than this one")


def names_in(certificate: dict[str, Any] | None) -> Sequence[str]:
    """Return the names of hosts in a certificate that the TLS layer has verified, as ssl.getpeercert returns it."""
    return [value for kind, value in (certificate or {}).get("subjectAltName", ()) if kind == "DNS"]
