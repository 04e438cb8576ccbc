"""What a check of the doctor is given, and what it yields."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from piolet.config import Config

OK, WARN, BAD, SKIPPED = "ok", "warning", "bad", "skipped"
ASK_S = 20.0


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


Check = Callable[[Machine], Iterator[Finding]]


def ask(machine: Machine, *command: str) -> subprocess.CompletedProcess[str] | None:
    """Return what a command said, or None where it did not end in time."""
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=ASK_S,
            check=False, env=machine.environ,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return None
