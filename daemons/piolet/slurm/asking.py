"""Asking a command of Slurm's, which has so long to answer, and is not to wait for a terminal."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence

from piolet.base.errors import SlurmError

ASK_S = 30.0


def ask(command: Sequence[str], what: str, times: str = "", limit_s: float = ASK_S) -> tuple[bool, str, str]:
    """Return whether a command of Slurm's ended well, and what it printed and said besides.

    what   it is asked for: 'the topology'
    times  how it shows times (SLURM_TIME_FORMAT), where the user may want others

    Raises SlurmError: it does not start, or does not answer in time.
    """
    environ: Mapping[str, str] = {**os.environ, "SLURM_TIME_FORMAT": times} if times else os.environ
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=limit_s, check=False, stdin=subprocess.DEVNULL, env=environ
        )
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{command[0]} did not tell {what} within {limit_s:g} s") from None
    except OSError as error:
        raise SlurmError(f"cannot start {command[0]}: {error.strerror}") from None
    return done.returncode == 0, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")
