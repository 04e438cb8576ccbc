"""What is signed of a request to the central service, and of its answer: a text for each, for a MUNGE credential.

A statement binds who asks (munged says that) to all of what is asked: method, target, cluster, node and body. `nonce`
is one that the service gave, where it wants to see that a credential outside its life is no replay. The answer's
credential covers the digest of the request's: whoever listens at the service's port while that is down cannot say that
it has taken what it has not.
"""

from __future__ import annotations

import hashlib
import re
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass

from piolet.base.errors import WireError

SCHEME = "MUNGE"
ANSWER_HEADER, NONCE_HEADER = "Piolet-Credential", "Piolet-Nonce"
_FIRST, _ANSWER = "piolet request 1", "piolet answer 1"
_METHOD = re.compile(r"GET|POST")
_TARGET_MAX = 2001
_TARGET = re.compile(rf"/[!-~]{{0,{_TARGET_MAX - 1}}}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,254}|")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_NONCE = re.compile(r"[0-9a-f.]{0,120}")
_TIME = re.compile(r"[0-9]{1,11}\.[0-9]{3}")


@dataclass(frozen=True)
class Statement:
    """What a request says.

    target    path and query as in the request's first line
    cluster   '' and node '' where it is not a node that speaks
    digest    SHA-256 of the body, 64 hexadecimal digits
    sent      by the clock of who asks, seconds since 1970
    """

    method: str
    target: str
    cluster: str
    node: str
    digest: str
    nonce: str
    sent: float

    def payload(self) -> bytes:
        """Return the text that a credential covers."""
        fields = (_FIRST, self.method, self.target, self.cluster, self.node, self.digest, self.nonce)
        return "\n".join((*fields, f"{self.sent:.3f}")).encode("ascii")

    @classmethod
    def parse(cls, payload: bytes) -> Statement:
        """Return the statement in a credential's payload. Raises WireError."""
        try:
            words = payload.decode("ascii").split("\n")
        except UnicodeDecodeError:
            words = []
        forms = (_METHOD, _TARGET, _NAME, _NAME, _DIGEST, _NONCE, _TIME)
        if len(words) != 8 or words[0] != _FIRST:
            raise WireError("a credential is of another protocol than Piolet's")
        if not all(form.fullmatch(word) for form, word in zip(forms, words[1:], strict=True)):
            raise WireError("a credential covers no request")
        method, target, cluster, node, body, nonce, sent = words[1:]
        return cls(method, target, cluster, node, body, nonce, float(sent))


def question(path: str, said: Mapping[str, str]) -> str:
    """Return the target of a request: a path with what is said, whatever bytes that has. Raises WireError: too long."""
    target = f"{path}?{urllib.parse.urlencode(said, errors='surrogateescape')}" if said else path
    if not _TARGET.fullmatch(target):
        raise WireError(f"the question is {len(target)} characters long, more than the limit of {_TARGET_MAX}")
    return target


def digest(data: bytes) -> str:
    """Return SHA-256 as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def answer(credential: str, status: int, body: bytes) -> bytes:
    """Return the text that the credential of an answer covers; `credential` is the request's."""
    return "\n".join((_ANSWER, digest(credential.encode()), str(status), digest(body))).encode("ascii")
