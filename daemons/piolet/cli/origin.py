"""What srun knows of a step and its nodes do not: the job's name, the command, the environment. Left in the data set.

The step has ended when it is written, and a report is the same without.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import time
from collections.abc import Mapping
from pathlib import Path

from piolet.base import files
from piolet.samples.dataset import ORIGIN, ORIGIN_MOST
from piolet.system import processes

_TEXT_MOST = 4096


def leave(directory: Path, srun: int, environ: Mapping[str, str] = os.environ) -> None:
    """Write what is known of the step whose srun has this number."""
    known = {
        "name": environ.get("SLURM_JOB_NAME", ""),
        "command": _command(srun),
        "environment": environ.get("SLURM_PIOLET_REQUEST", ""),
        "nodes": environ.get("SLURM_STEP_NODELIST", "") or environ.get("SLURM_NODELIST", ""),
    }
    with contextlib.suppress(KeyError):
        known["user"] = pwd.getpwuid(os.getuid()).pw_name
    text = json.dumps({name: value[:_TEXT_MOST] for name, value in known.items() if value})
    with contextlib.suppress(OSError):
        path = directory / ORIGIN
        files.write_whole(str(path), text.encode()[:ORIGIN_MOST], f"{path}.{os.getpid()}")


def began(pid: int) -> float:
    """Return when a process was started, in seconds since 1970; 0 if it cannot be told."""
    ticks = processes.start_time(pid)
    if ticks is None:
        return 0.0
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")


def _command(pid: int) -> str:
    """Return the command line of a process; '' if it cannot be told."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    return " ".join(word.decode("utf-8", "replace") for word in words if word)
