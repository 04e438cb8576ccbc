"""What the server may ask of the monitor, and nothing else: the closed table of the privileged side.

    Build   make a container for a step, as its user; the answer carries its two namespaces
    Attach  let a step enter the container of another step of its job; the answer carries the same
    End     the step is over: end what still runs in its container, and forget it

One packet per message on a SOCK_SEQPACKET pair; the monitor checks every field before it acts. With Build and Attach
comes the step's connection, and START is still in it: whose step it is, the monitor has from root's slurmstepd.
"""

from __future__ import annotations

import errno
import re
import socket
import struct
from dataclasses import dataclass, field

from piolet.base.errors import WireError
from piolet.steps import identity
from piolet.system import peer
from piolet.transport import packets

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
# struct piolet_start of wire.h, whose cffi module is too much for the monitor; tests/wire holds them together.
START = struct.Struct("=IHHII8I64x")
START_IS = (0x544C4950, 2, 1)
GROUPS_MAX = 1024
_ENVIRONMENT = 1
_TIMEOUT_MAX_S = 86400.0


@dataclass(frozen=True)
class Build:
    """Build a container.

    key       the server's number for this step, which `end` and the answer carry
    digest    image of the site's store, or None: the plan names the user's own file
    identity  of the image file (base/files.py, identity_of), so that a replaced file is mounted afresh
    plan      for the worker; the monitor does not look inside
    foreign   the plan has a program run that is not ours (squashfuse, crun): that is to be in the step's control group
    remapped  the user is to be root in the container, by its map of ids
    """

    key: int
    digest: str | None
    identity: list[int]
    timeout_s: float
    plan: str
    foreign: bool = False
    remapped: bool = False


@dataclass(frozen=True)
class Attach:
    """Let the step with this key enter the container of the step `to` ("JOB.STEP")."""

    key: int
    to: str


@dataclass(frozen=True)
class End:
    """The step with this key is over."""

    key: int


@dataclass(frozen=True)
class _Request:
    """What is on the wire: one of the three."""

    build: Build | None = None
    attach: Attach | None = None
    end: End | None = None


@dataclass(frozen=True)
class Answer:
    """What became of a Build or an Attach: two descriptors come with it, or `error` says why not.

    `marks` are [name, monotonic seconds] of when each phase was over; `made_in` is the number of the job's own mount
    namespace, if the container was made there; `start` is where tasks start, if that is one of the plan's directories.
    """

    key: int
    error: str = ""
    hint: str = ""
    marks: list[tuple[str, float]] = field(default_factory=list)
    made_in: int = 0
    start: str = ""


@dataclass(frozen=True)
class Announced:
    """Whose step it is: `step` is "JOB.STEP", `peer` the pid of its slurmstepd."""

    step: str
    peer: int
    uid: int
    gid: int
    groups: list[int]

    @property
    def job(self) -> int:
        """The job's number."""
        return int(identity.parts(self.step)[0])


def encode(request: Build | Attach | End) -> bytes:
    """Return the request's message."""
    if isinstance(request, Build):
        return packets.encode(_Request(build=request))
    return packets.encode(_Request(attach=request) if isinstance(request, Attach) else _Request(end=request))


def decode(data: bytes) -> Build | Attach | End:
    """Return the request in a message, every field checked. Raises WireError."""
    said = packets.decode(_Request, data)
    requests = [one for one in (said.build, said.attach, said.end) if one is not None]
    if len(requests) != 1:
        raise WireError("the server asked for an operation that is not in the table")
    request = requests[0]
    if isinstance(request, Build):
        if request.digest is not None and not _DIGEST.fullmatch(request.digest):
            raise WireError("an image digest is malformed")
        if not 0 < request.timeout_s <= _TIMEOUT_MAX_S or len(request.identity) not in (0, 5):
            raise WireError("a number in a request is impossible")
    if isinstance(request, Attach) and not identity.is_name(request.to):
        raise WireError("the name of a step is malformed")
    if request.key < 0:
        raise WireError("a number in a request is impossible")
    return request


def take_start(connection: socket.socket, listener: peer.File) -> Announced:
    """Take START from a step's connection, as far as the groups: the definition is not the monitor's business.

    Raises WireError: it did not come from root by way of the node's socket, it is none, or the step is root's.
    """
    try:
        pid, uid, _ = peer.of_accepted(connection, listener)
        data = connection.recv(START.size + 4 * GROUPS_MAX, socket.MSG_DONTWAIT)
    except OSError as error:
        hint = "its unit must leave it CAP_NET_ADMIN" if error.errno == errno.EPERM else None
        raise WireError(f"pioletd cannot tell whose step this is: {error.strerror or error}", hint) from None
    if uid != 0 or len(data) < START.size:
        raise WireError("the step was not announced by Slurm")
    magic, version, kind, _, _, plugin, job, step, uid, gid, count, _, _ = START.unpack_from(data)
    if (magic, version, kind) != START_IS or plugin != _ENVIRONMENT or count > (len(data) - START.size) // 4:
        raise WireError("the step was not announced by Slurm")
    if uid == 0:
        # The plan is the server's word, and would be carried out as root.
        raise WireError("a step of root has no environment", "start it as another user")
    return Announced(identity.name(job, step), pid, uid, gid, list(struct.unpack_from(f"={count}I", data, START.size)))
