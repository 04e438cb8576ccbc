"""Run one job in a child process of its own, from asyncio: watched, and killed as a whole.

The child gets a session of its own, so that it and the programs it starts are one group; whatever
happens here, the group is dead when `run` returns.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import piolet
from piolet.base.errors import ImageError
from piolet.images import registry
from piolet.images.cage import WALLS
from piolet.images.failures import from_wire
from piolet.images.settings import ImagesConfig

PAUSES_S = registry.PAUSES_S
_LINE_LIMIT = 8 * 1024 * 1024


def settings_of(config: ImagesConfig) -> dict[str, Any]:
    """Return what each job is told of the site's settings."""
    return {
        "skopeo": config.skopeo,
        "policy": config.policy,
        "mksquashfs": config.mksquashfs,
        "compression": config.compression,
        "processors": config.processors,
        "timeout_s": config.pull_timeout_s,
        "memory": config.memory,
        "unpack_ratio": config.unpack_ratio,
        "conversion_rate": config.conversion_rate,
        "scanner": config.scanner,
        "scanner_data": config.scanner_data,
        "scan_timeout_s": config.scan_timeout_s,
    }


async def run(job: dict[str, Any], descriptors: Sequence[int], tell: Callable[[str], None]) -> dict[str, Any]:
    """Return the result of `job` (see worker.py), handing each progress text to `tell`.

    The caller bounds the time, by cancelling. Raises ImageError: the job's own, or that it was killed.
    """
    root = str(Path(piolet.__path__[0]).resolve().parent)
    start = f"import sys; sys.path.insert(0, {root!r}); import piolet.images.worker as w; sys.exit(w.main())"
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        "-c",
        start,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        pass_fds=tuple(descriptors),
        start_new_session=True,
        limit=_LINE_LIMIT,
    )
    try:
        return await _talk(child, {**job, "parent": os.getpid(), "walls": WALLS, "pauses": PAUSES_S}, tell)
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
        await asyncio.shield(child.wait())


async def _talk(child: asyncio.subprocess.Process, job: dict[str, Any], tell: Callable[[str], None]) -> dict[str, Any]:
    assert child.stdin is not None and child.stdout is not None
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        child.stdin.write(json.dumps(job).encode())
        child.stdin.close()
    while line := await child.stdout.readline():
        message = json.loads(line)
        if "progress" in message:
            tell(message["progress"])
        elif "error" in message:
            raise from_wire(message["error"])
        else:
            result: dict[str, Any] = message["result"]
            return result
    raise ImageError(
        f"the process that was importing {job['what']} ended before it was done",
        "try again; if it happens again, the service's log says more",
    )
