"""What a restarted daemon needs to know of the steps that run: one small file a step, root's only.

Losing one costs little (the daemon then looks for the slurmstepd by its title), so a full /run never fails a step.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from dataclasses import dataclass

from piolet.base import files
from piolet.base.errors import PioletError
from piolet.steps import identity
from piolet.system import processes

_log = logging.getLogger("pioletd.monitor")


@dataclass(frozen=True)
class Known:
    """A step that an earlier daemon served: its slurmstepd's pid, and when that started."""

    step: str
    peer: int
    started: int | None

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
            text = json.dumps({"peer": known.peer, "started": known.started})
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
                found.append(Known(name, int(value["peer"]), value["started"]))
            except (OSError, ValueError, KeyError, TypeError):
                with contextlib.suppress(OSError):
                    os.unlink(path)
        return found
