"""What a worker is told to build: the server makes it from a definition, the worker carries it out.

Plain JSON on its way through the monitor, which never looks inside.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

ENTRY_PROGRAM = "/run/piolet/entry"
"""Where the entry program is in a container."""


@dataclass(frozen=True)
class PlannedMount:
    """One mount of the container. An `optional` one is left out where its source is not there.

    `kind` is 'bind', 'sqsh' or 'tmpfs'; `file` says that a bind's destination may have to replace a
    symbolic link of the image (as /etc/localtime is one).
    """

    source: str
    destination: str
    kind: str = "bind"
    flags: tuple[str, ...] = ()
    optional: bool = False
    file: bool = False


@dataclass(frozen=True)
class Plan:
    """A container to build.

    label        names the root mount ("piolet:JOB.STEP"), so that a restarted daemon knows its containers
    sqsh         the SquashFS file that the user brought, or None: the root comes as a mount
    entrypoint   words that the entry program puts in front of the command
    """

    label: str
    sqsh: str | None = None
    writable: bool = True
    runtime: str = "native"
    mounts: tuple[PlannedMount, ...] = ()
    entrypoint: tuple[str, ...] = ()

    def to_json(self) -> str:
        """Return the plan as JSON."""
        return json.dumps(asdict(self))


def from_json(text: str) -> Plan:
    """Return the plan that `to_json` wrote."""
    value = json.loads(text)
    value["mounts"] = tuple(PlannedMount(**{**m, "flags": tuple(m["flags"])}) for m in value["mounts"])
    value["entrypoint"] = tuple(value["entrypoint"])
    return Plan(**value)
