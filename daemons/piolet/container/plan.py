"""What a worker is told to build: the server makes it from a definition, the worker carries it out.

Plain JSON on its way through the monitor, which never looks inside.
"""

from __future__ import annotations

from dataclasses import dataclass

from piolet.transport import packets

ENTRY_PROGRAM = "/run/piolet/entry"
"""Where the entry program is in a container."""
ENTRY_ATTACHED = "/run/piolet/./entry"
"""The same; called so, it runs no entrypoint (entry.c)."""
OPTIONAL = "optional"
"""The flag of a mount that is left out where its source is not there."""
TASK_FILE = "/run/piolet/task"
"""What it does to each task's environment first, and says, as in entry.c."""
SHELL = "/bin/sh"
SCRIPT = "/run/piolet/around"
"""What stands around the tasks (around.py)."""
SHARED = "/run/piolet/shared"
"""A tmpfs of the container's own, where tasks of a node meet each other and the keeper."""
OF_JOB = "/run/piolet/job"
HOME_FOLDER = ".cache/piolet/startup"
"""Below the user's home: what is at OF_JOB."""
KEEPER, ASK, ANSWER = "keeper", "ask", "answer"
CREATE = "x-create"
"""The flag of a mount whose mount point may be made in what is mounted above it."""


@dataclass(frozen=True)
class PlannedMount:
    """One mount of the container. An `optional` one is left out where its source is not there.

    `kind` is 'bind', 'sqsh', 'tmpfs', 'made': a directory that is made (jobmarks.py), or 'text': a file with this
    `content`, which can be run if it has the flag 'x'.
    `file` says that the destination may have to replace a symbolic link of the image (as /etc/localtime is one).
    """

    source: str
    destination: str
    kind: str = "bind"
    flags: tuple[str, ...] = ()
    optional: bool = False
    file: bool = False
    content: str = ""


@dataclass(frozen=True)
class PlannedFolder:
    """Files of a directory that are mounted, read-only, in one of the container's.

    links      name and target of symbolic links beside them
    libraries  which of the names the dynamic loader finds
    """

    source: str
    destination: str
    names: tuple[str, ...]
    links: tuple[tuple[str, str], ...] = ()
    libraries: tuple[str, ...] = ()


@dataclass(frozen=True)
class PlannedProgram:
    """A program to start in the finished container, as the user and in the step's control groups.

    wait_s       it ends by itself within so many seconds, which the step waits for; 0: it runs on
    environment  NAME=VALUE
    failure      what its user is told if it fails, besides how
    """

    words: tuple[str, ...]
    wait_s: float = 0.0
    environment: tuple[str, ...] = ()
    failure: str = ""


@dataclass(frozen=True)
class PlannedSave:
    """What a container is saved as when its tasks have ended: a file, or a name in the site's store, or in `store`.

    home, user              of the user, for whom it is saved
    env, labels             NAME=VALUE of the image that it had
    entrypoint, workdir     likewise
    """

    step: str
    file: str = ""
    name: str = ""
    store: str = ""
    home: str = ""
    user: str = ""
    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    workdir: str | None = None
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class ContainerPlan:
    """A container to build.

    label        names the root mount ("piolet:JOB.STEP"), so that a restarted daemon knows its containers
    sqsh         the SquashFS file that the user brought, or None: the root comes as a mount
    entrypoint   words that the entry program puts in front of the command
    remapped     the user is root in there (decision 83), which the entry program has to prepare
    directories  where tasks may start: in the first that is there and that the user can enter
    workdir      the image's own, which is made where the image lacks it; or ''
    folders      directories of which many files are mounted
    links        symbolic links: path, target
    libraries    what the dynamic loader finds besides: name, path, and whether the image's own of that name is first
    compatible   directories of CUDA libraries that the image has for newer drivers, and the version of the node's
    programs     what is started at the end
    accounts     names of accounts of the node that /etc/passwd has, too
    shell        the entrypoint is our script (around.py), for which the image has to have a shell
    save         what it is saved as at the end
    """

    label: str
    sqsh: str | None = None
    writable: bool = True
    runtime: str = "native"
    mounts: tuple[PlannedMount, ...] = ()
    entrypoint: tuple[str, ...] = ()
    remapped: bool = False
    directories: tuple[str, ...] = ()
    workdir: str = ""
    folders: tuple[PlannedFolder, ...] = ()
    links: tuple[tuple[str, str], ...] = ()
    libraries: tuple[tuple[str, str, bool], ...] = ()
    compatible: tuple[tuple[str, str], ...] = ()
    programs: tuple[PlannedProgram, ...] = ()
    accounts: tuple[str, ...] = ()
    shell: bool = False
    save: PlannedSave | None = None

    def to_json(self) -> str:
        """Return the plan as JSON."""
        return packets.encode(self).decode("ascii")

    @property
    def foreign(self) -> bool:
        """Whether a program that is not ours, or the keeper, runs for it: squashfuse, crun, what a hook has started."""
        served = self.sqsh is not None or any(mount.kind == "sqsh" for mount in self.mounts)
        return self.runtime != "native" or served or bool(self.programs) or self.save is not None


def from_json(text: str) -> ContainerPlan:
    """Return the plan that `to_json` wrote. Raises WireError."""
    return packets.decode(ContainerPlan, text)
