"""Asking a command of Slurm's: it has so long to answer, says so much and no more, and does not wait for a terminal."""

from __future__ import annotations

import os
import selectors
import subprocess
import time
from collections.abc import Mapping, Sequence

from piolet.base.errors import SlurmError

ASK_S = 30.0
OUTPUT_MAX = 64 << 20


class TooMuchError(SlurmError):
    """A command has more to tell than it is given time or room for."""


def ask(
    command: Sequence[str], what: str, times: str = "", limit_s: float = ASK_S, most: int = OUTPUT_MAX
) -> tuple[bool, str, str]:
    """Return whether a command of Slurm's ended well, and what it printed and said besides.

    what    it is asked for: 'the topology'
    times   how it shows times (SLURM_TIME_FORMAT), where the user may want others
    most    so many bytes together

    Raises SlurmError: it does not start; TooMuchError: it does not answer in time, or never stops.
    """
    environ: Mapping[str, str] = {**os.environ, "SLURM_TIME_FORMAT": times} if times else os.environ
    deadline = time.monotonic() + limit_s
    try:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ
        )
    except OSError as error:
        raise SlurmError(f"cannot start {command[0]}: {error.strerror}") from None
    out, err = bytearray(), bytearray()
    assert child.stdout is not None and child.stderr is not None
    late = TooMuchError(f"{command[0]} did not tell {what} within {limit_s:g} s")
    with child, selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ, out)
        selector.register(child.stderr, selectors.EVENT_READ, err)
        try:
            while selector.get_map():
                left = deadline - time.monotonic()
                if left <= 0:
                    raise late
                for key, _ in selector.select(left):
                    piece = os.read(key.fd, 1 << 16)
                    key.data.extend(piece)
                    if not piece:
                        selector.unregister(key.fileobj)
                if len(out) + len(err) > most:
                    raise TooMuchError(f"{command[0]} told more of {what} than {most >> 20} MiB", "ask for less of it")
            status = child.wait(max(deadline - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            raise late from None
        finally:
            child.kill()
    return status == 0, out.decode("utf-8", "replace"), err.decode("utf-8", "replace")
