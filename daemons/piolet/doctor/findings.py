"""What a check of the doctor is given, and what it yields."""

from __future__ import annotations

import errno
import json
import os
import select
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from piolet.site.config import Config

OK, WARN, BAD, SKIPPED = "ok", "warning", "bad", "skipped"
ASK_S = 20.0
LOOK_S = 5.0
NOBODY = 65534


@dataclass(frozen=True)
class Finding:
    """What one look found; `hint` is how to mend it."""

    check: str
    state: str
    text: str
    hint: str = ""


@dataclass(frozen=True)
class Machine:
    """What is looked at; tests have their own.

    config_path, config_fault   where `config` was read, if not from its usual place, and what was wrong there
    here   whether a daemon belongs on this machine: 'pioletd' on nodes, 'piolet-imaged' where images are pulled
    user   as whom srun is asked: as an ordinary user, who may not read all that root may
    """

    config: Config
    config_path: Path | None = None
    config_fault: Finding | None = None
    proc: Path = Path("/proc")
    dev: Path = Path("/dev")
    release: str = field(default_factory=lambda: os.uname().release)
    path: str = field(default_factory=lambda: os.environ.get("PATH", os.defpath))
    environ: dict[str, str] = field(default_factory=lambda: dict(os.environ))
    here: Callable[[str], bool] = lambda name: shutil.which(name) is not None
    user: int | None = field(default_factory=lambda: NOBODY if os.geteuid() == 0 else None)


Check = Callable[[Machine], Iterator[Finding]]


def ask(machine: Machine, *command: str, user: int | None = None) -> subprocess.CompletedProcess[str] | None:
    """Return what a command said, or None where it did not end in time; `user` runs it, where that is not this one."""
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=ASK_S,
            check=False, env=machine.environ, user=user, group=user, extra_groups=None if user is None else (),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return None


def look(place: str, at: Callable[[str], Any]) -> Any:
    """Return what `at(place)` returns, numbers or a list of them: from a child, as a file system may not answer.

    Raises OSError; TimeoutError after LOOK_S. The child may then wait in the kernel, where nothing ends it.
    """
    answer, ours = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            os.closerange(0, 3)  # whoever reads what this command prints does not wait for the child
            try:
                found = (0, at(place))
            except OSError as error:
                found = (error.errno or errno.EIO, None)
            os.write(ours, json.dumps(found).encode())
        finally:
            os._exit(0)
    os.close(ours)
    with os.fdopen(answer, "rb") as pipe:
        if not select.select([pipe], [], [], LOOK_S)[0]:
            os.kill(pid, signal.SIGKILL)
            raise TimeoutError(errno.ETIMEDOUT, f"no answer within {LOOK_S:g} s", place)
        said = pipe.read()
    os.waitpid(pid, 0)
    number, value = json.loads(said) if said else (errno.EIO, None)
    if number:
        raise OSError(number, os.strerror(number), place)
    return value
