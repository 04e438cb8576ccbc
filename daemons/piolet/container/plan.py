"""What a worker is told to build: the server makes it from a definition, the worker carries it out.

Plain JSON on its way through the monitor, which never looks inside.
"""

from __future__ import annotations

from dataclasses import dataclass

from piolet.transport import packets

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
class ContainerPlan:
    """A container to build.

    label        names the root mount ("piolet:JOB.STEP"), so that a restarted daemon knows its containers
    sqsh         the SquashFS file that the user brought, or None: the root comes as a mount
    entrypoint   words that the entry program puts in front of the command
    remapped     the user is root in there (decision 83), which the entry program has to prepare
    """

    label: str
    sqsh: str | None = None
    writable: bool = True
    runtime: str = "native"
    mounts: tuple[PlannedMount, ...] = ()
    entrypoint: tuple[str, ...] = ()
    remapped: bool = False

    def to_json(self) -> str:
        """Return the plan as JSON."""
        return packets.encode(self).decode("ascii")

    @property
    def foreign(self) -> bool:
        """Whether a program that is not ours runs to make it: squashfuse, or an OCI runtime."""
        return self.runtime != "native" or self.sqsh is not None or any(mount.kind == "sqsh" for mount in self.mounts)


def from_json(text: str) -> ContainerPlan:
    """Return the plan that `to_json` wrote. Raises WireError."""
    return packets.decode(ContainerPlan, text)
