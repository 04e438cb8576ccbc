"""Read a few small files of a SquashFS file that a user brought, in the user's own process and in the cage.

unsquashfs reads it, with the rights of the user, who could run it as well; what it reads may be a stranger's all the
same, so it sees and writes nothing else. On srun's path, for `.sqsh` files alone: no asyncio, one child.

The child gets the arguments of `_inside` as JSON on standard input and answers with one JSON object.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import piolet
from piolet.base.errors import ImageError
from piolet.images import cage, limits
from piolet.system import linux

LIMIT_BYTES = 256 * 1024
"""A file of which more is asked is not read; definitions have no room for as much either."""
_LIMIT_S, _MEMORY_MIB = 20.0, 1024
_LITTLE = ("-da", "8", "-fr", "8", "-p", "1", "-no-wild")
_NOT_THERE = 2


def read(path: str, names: Sequence[str], program: str, walls: Sequence[str] = cage.WALLS) -> dict[str, str]:
    """Return the text of the plain files `names` in the image at `path`, as far as it has them.

    Raises ImageError: no unsquashfs at `program`, no cage to be had, not a whole SquashFS file, too slow.
    """
    if not os.access(program, os.X_OK):
        raise ImageError(f"{program} is not there", "install squashfs-tools")
    root = str(Path(piolet.__path__[0]).resolve().parent)
    start = f"import sys; sys.path.insert(0, {root!r}); import piolet.images.peek as p; p.main()"
    scratch = tempfile.mkdtemp(prefix="piolet-peek-")
    try:
        job = {"path": path, "names": list(names), "program": program, "scratch": scratch, "walls": list(walls)}
        child = subprocess.Popen(
            [sys.executable, "-I", "-c", start], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            said, _ = child.communicate(json.dumps({**job, "parent": os.getpid()}).encode(), _LIMIT_S)
        except subprocess.TimeoutExpired:
            raise ImageError(f"{program} did not read {path} within {_LIMIT_S:g} s") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    try:
        answer: dict[str, Any] = json.loads(said)
    except ValueError:
        raise ImageError(f"the process that was reading {path} ended before it was done") from None
    if "error" in answer:
        raise ImageError(answer["error"], answer["hint"])
    found: dict[str, str] = answer["files"]
    return found


def main() -> None:
    """Do the job on standard input, and answer on standard output."""
    linux.die_with_parent(signal.SIGKILL)
    job = json.loads(sys.stdin.buffer.read())
    if os.getppid() != job.pop("parent"):
        return
    try:
        answer: dict[str, Any] = {"files": _inside(**job)}
    except ImageError as error:
        answer = {"error": error.message, "hint": error.hint}
    os.write(1, json.dumps(answer).encode())


def _inside(path: str, names: list[str], program: str, scratch: str, walls: list[str]) -> dict[str, str]:
    cage.Cage(os.path.realpath(scratch), (*cage.program(program), path), walls=tuple(walls)).enter()
    limits.bound_memory(_MEMORY_MIB)
    found = {}
    for name in names:
        with subprocess.Popen(
            [program, *_LITTLE, "-cat", path, name], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, preexec_fn=cage.narrow,
        ) as child:  # fmt: skip
            assert child.stdout is not None
            data = child.stdout.read(LIMIT_BYTES + 1)
            if len(data) > LIMIT_BYTES:
                child.kill()
                raise ImageError(f"/{name} in it has more than {LIMIT_BYTES} bytes")
        if child.returncode not in (0, _NOT_THERE):
            raise ImageError("it is not a whole SquashFS file, or one that unsquashfs does not read")
        if child.returncode == 0:
            found[name] = data.decode("utf-8", "replace")
    return found
