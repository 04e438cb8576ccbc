"""Living processes: the service's own, and those with a word in their command line."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path

from tests.images.conftest import Site


def pids(command: str) -> list[int]:
    """Return the living processes whose command line contains `command`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
                if command in line and (entry / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                    found.append(int(entry.name))
    return found


def parent(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def children(site: Site) -> str:
    """Return the commands of all processes below the service."""
    assert site.process is not None
    out = subprocess.run(["ps", "-eo", "pid,ppid,stat,args"], capture_output=True, text=True).stdout
    below, lines = {str(site.process.pid)}, [line.split(None, 3) for line in out.splitlines()[1:]]
    found = ""
    for _ in range(4):
        for pid, parent, state, command in lines:
            if parent in below and pid not in below and "Z" not in state:
                below.add(pid)
                found += command + "\n"
    return found
