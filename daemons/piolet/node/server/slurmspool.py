"""SlurmdSpoolDir, in which the PMIx server of each step has the directory that its tasks look for.

Only Slurm knows where it is, and pioletd asks Slurm nothing. But each slurmstepd listens there, at NODE_JOB.STEP,
before it announces its step, and the kernel says at which paths processes listen. Anybody can listen at a path of that
name: so only what root alone can write to is believed.
"""

from __future__ import annotations

import os
import re
import stat

_SOCKETS = "/proc/net/unix"
_BYTES_MAX = 8 << 20


class SlurmSpool:
    """Finds it once, and then knows it. `sockets` is the kernel's list."""

    def __init__(self, sockets: str = _SOCKETS) -> None:
        self._sockets = sockets
        self._known: dict[str, str] = {}

    def directory(self, node: str) -> str | None:
        """Return the absolute path, or None: it is not to be found."""
        known = self._known.get(node)
        if known is None:
            known = next((one for one in self._candidates(node) if _is_roots(one)), None)
            if known is not None:
                self._known = {node: known}
        return known

    def _candidates(self, node: str) -> list[str]:
        name = re.compile(rf"(/.*)/{re.escape(node)}_[A-Za-z0-9]+\.[0-9]+(?:\.[0-9]+)?")
        try:
            with open(self._sockets, encoding="utf-8", errors="surrogateescape") as file:
                lines = file.read(_BYTES_MAX).splitlines()
        except OSError:
            return []
        paths = [fields[7] for line in lines if len(fields := line.split(None, 7)) == 8]
        return list(dict.fromkeys(match[1] for path in paths if (match := name.fullmatch(path))))


def _is_roots(path: str) -> bool:
    """Return whether nobody but root can write to the directory `path`, or replace one on the way to it."""
    try:
        at = path
        while True:
            status = os.lstat(at)
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != 0 or status.st_mode & 0o022:
                return False
            if at == "/":
                return True
            at = os.path.dirname(at)
    except OSError:
        return False
