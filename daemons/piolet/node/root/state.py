"""What a restarted daemon needs to know of the steps that run: one small file a step, root's only.

Losing one costs little (the daemon then looks for the slurmstepd by its title), so a full /run never fails a step.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from dataclasses import asdict, dataclass

from piolet.base import files
from piolet.base.errors import PioletError
from piolet.steps import identity
from piolet.system import processes

_log = logging.getLogger("pioletd.monitor")


@dataclass(frozen=True)
class Known:
    """A step that an earlier daemon served: its slurmstepd's pid, and when that started.

    user, mounts   the numbers of its container's namespaces, 0: not known. No other has them while slurmstepd lives,
                   which keeps both open (READY stays in its socket's queue)
    made_in, start as in Answer
    """

    step: str
    peer: int
    started: int | None
    uid: int = -1
    user: int = 0
    mounts: int = 0
    made_in: int = 0
    start: str = ""

    def alive(self) -> bool:
        """Return whether that very slurmstepd still runs."""
        return processes.still_runs(self.peer, self.started)


class StepFiles:
    """The files, in a directory that only root may enter."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        try:
            os.makedirs(directory, 0o700, exist_ok=True)
        except OSError as error:
            raise PioletError(f"cannot make {directory}: {error.strerror}", "is the file system full?") from None

    def write(self, known: Known) -> None:
        """Note that the step runs. A failure is logged and does no harm."""
        path = f"{self._directory}/{known.step}"
        try:
            # dumps, since dump leaves cycles behind, and the monitor's garbage collector is off.
            value = asdict(known)
            del value["step"]
            text = json.dumps(value)
            files.write_whole(path, text.encode(), f"{path}.tmp")
        except OSError as error:
            _log.warning("cannot note step %s in %s: %s", known.step, self._directory, error.strerror)

    def remove(self, step: str) -> None:
        """Forget the step, whose name is of the right form."""
        with contextlib.suppress(OSError):
            os.unlink(f"{self._directory}/{step}")

    def read(self) -> list[Known]:
        """Return every step that was noted; a file that cannot be read is removed."""
        found = []
        for name in os.listdir(self._directory):
            path = f"{self._directory}/{name}"
            try:
                if not identity.is_name(name):
                    raise ValueError(name)
                with open(path, encoding="ascii") as file:
                    value = json.load(file)
                if not isinstance(value, dict):
                    raise ValueError(name)
                found.append(_known(name, value))
            except (OSError, ValueError, KeyError, TypeError):
                with contextlib.suppress(OSError):
                    os.unlink(path)
        return found


def _known(step: str, value: dict[str, int | str | None]) -> Known:
    """Return the step in a file of this release, or of an earlier one, which knew less. Raises what int does."""
    numbers = {name: int(value.get(name) or 0) for name in ("user", "mounts", "made_in")}
    started, uid = value["started"], value.get("uid")
    return Known(
        step,
        int(value["peer"] or 0),
        None if started is None else int(started),
        -1 if uid is None else int(uid),
        start=str(value.get("start") or ""),
        **numbers,
    )
