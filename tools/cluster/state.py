"""What is on record of a running cluster: `cluster.json`, written whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tools.cluster.errors import ClusterError

LOCK_WAIT_S = 120.0


@dataclass(frozen=True)
class Process:
    """A process of ours. A pid alone may be used again by somebody else; with `start` it cannot lie.

    start  field 22 of /proc/PID/stat: clock ticks from boot to the start of the process
    """

    name: str
    pid: int
    start: int


@dataclass(frozen=True)
class State:
    """A cluster on record.

    `ready` says that `up` came to its end; `boot` is the boot that it belongs to; `installed` the root directory of the
    RPMs that it runs, if any; `cgroups` the version of control groups that confine its steps, or 0;
    `private_tmp` whether its jobs have a /tmp of their own; `accounting` whether it has a slurmdbd, `central` a
    central service of Piolet's.
    """

    boot: str
    nodes: int
    piolet: bool
    cgroup: str
    ports: dict[str, int]
    started_at: float
    ready: bool = False
    processes: tuple[Process, ...] = field(default=())
    installed: str | None = None
    cgroups: int = 0
    private_tmp: bool = False
    accounting: bool = False
    central: bool = False

    @property
    def described(self) -> str:
        """What it was started with, in words."""
        words = [f"with{'' if self.piolet else 'out'} piolet", *["from RPMs"] * bool(self.installed)]
        words += ["with control groups"] * bool(self.cgroups) + ["with private directories"] * self.private_tmp
        return " ".join(words + ["with accounting"] * self.accounting + ["with a central service"] * self.central)

    @property
    def asked(self) -> tuple[object, ...]:
        """What it was asked for: nodes, Piolet, packages, control groups, directories, accounting, central service."""
        flags = (bool(self.cgroups), self.private_tmp, self.accounting, self.central)
        return (self.nodes, self.piolet, self.installed, *flags)

    def with_process(self, process: Process) -> State:
        others = tuple(p for p in self.processes if p.name != process.name)
        return replace(self, processes=(*others, process))

    def find(self, name: str) -> Process | None:
        return next((p for p in self.processes if p.name == name), None)


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()


def load(path: Path) -> State | None:
    """Return the cluster on record, or None: there is none, or the file is not what `save` wrote."""
    try:
        value: Any = json.loads(path.read_text("utf-8"))
        processes = tuple(Process(str(p["name"]), int(p["pid"]), int(p["start"])) for p in value.pop("processes"))
        return State(**value, processes=processes)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def save(path: Path, state: State) -> None:
    write_atomically(path, json.dumps(asdict(state), indent=1) + "\n")


def write_atomically(path: Path, text: str, mode: int = 0o644) -> None:
    """Replace `path`; a reader sees the old file or the new one, and never a part of either."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, "utf-8")
        temporary.chmod(mode)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path, what: str, wait_s: float = LOCK_WAIT_S) -> Iterator[None]:
    """Hold a lock that the kernel gives back whatever happens to us; wait for it, but not for ever."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ClusterError(
                        f"another command has been working on {what} for {wait_s:.0f} s",
                        f"see who holds it: fuser {path}",
                    ) from None
                time.sleep(0.1)
        yield
    finally:
        os.close(descriptor)
