"""What the server may ask of the monitor, and nothing else: the closed table of the privileged side.

    build  make a container for a step, as its user; the answer carries its two namespaces
    end    the step is over: end what still runs in its container, and forget it

One JSON object per message on a SOCK_SEQPACKET pair; the monitor checks every field before it acts.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import Any

from piolet.errors import WireError

MESSAGE_MAX = 256 * 1024
_LABEL = re.compile(r"[0-9]{1,10}\.[0-9]{1,10}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Build:
    """Build a container.

    key       the server's number for this step, which `end` and the answer carry
    step      "JOB.STEP"
    peer      pid of the step's slurmstepd
    digest    image of the site's store, or None: the plan names the user's own file
    identity  device, inode and size of the image file, so that a replaced file is mounted afresh
    plan      for the worker; the monitor does not look inside
    """

    key: int
    step: str
    peer: int
    uid: int
    gid: int
    groups: list[int]
    digest: str | None
    identity: list[int]
    timeout_s: float
    plan: str


@dataclass(frozen=True)
class End:
    """The step with this key is over."""

    key: int


def encode(request: Build | End) -> bytes:
    """Return the request's message."""
    return json.dumps({"op": type(request).__name__.lower(), **asdict(request)}).encode()


def decode(data: bytes) -> Build | End:
    """Return the request in a message, every field checked. Raises WireError."""
    try:
        value = json.loads(data)
        operation = value.pop("op")
        if operation == "end":
            return End(key=_number(value["key"]))
        if operation != "build":
            raise WireError("the server asked for an operation that is not in the table")
        step, digest = value["step"], value["digest"]
        if not isinstance(step, str) or not is_step(step):
            raise WireError("a step's label is malformed")
        if digest is not None and not (isinstance(digest, str) and _DIGEST.fullmatch(digest)):
            raise WireError("an image digest is malformed")
        return Build(
            key=_number(value["key"]),
            step=step,
            peer=_number(value["peer"]),
            uid=_number(value["uid"]),
            gid=_number(value["gid"]),
            groups=[_number(group) for group in value["groups"]],
            digest=digest,
            identity=[_number(number, 1 << 64) for number in value["identity"]],
            timeout_s=float(value["timeout_s"]),
            plan=str(value["plan"]),
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise WireError(f"a request to the monitor is malformed: {error}") from None


def is_step(text: str) -> bool:
    """Return whether `text` is "JOB.STEP". Whatever comes from outside is asked this before it names a file."""
    return _LABEL.fullmatch(text) is not None


def _number(value: Any, limit: int = 1 << 32) -> int:
    if type(value) is not int or not 0 <= value < limit:
        raise WireError("a number in a request is impossible")
    return value
