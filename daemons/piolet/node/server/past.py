"""What this node's evals measured at first, in one file of the spool's directory; vet/sitepast.py says what it is for.

It is taken in the server's loop and written in the spool's thread, whole and seldom: a crash loses a few values.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from typing import Any

from piolet.base import files
from piolet.vet import sitepast

_EACH_S = 5.0


class Past:
    """The table, and its file in `directory`. What cannot be read is empty."""

    def __init__(self, directory: str) -> None:
        self._path = os.path.join(directory, sitepast.FILE)
        self._lock = threading.Lock()
        self._changed = False
        self._saved = float("-inf")
        try:
            with open(self._path, encoding="ascii", errors="replace") as file:
                self._table = sitepast.load(file.read(sitepast.SIZE_MAX))
        except OSError:
            self._table = {}

    @property
    def due(self) -> float:
        """When `save` has to be called, by time.monotonic()."""
        return self._saved + _EACH_S if self._changed else float("inf")

    def take(self, uid: int, entry: Mapping[str, Any]) -> None:
        """Take a verdict that is spooled, if it counts."""
        with self._lock:
            self._changed = sitepast.take(self._table, uid, entry) or self._changed

    def save(self, now: float) -> None:
        """Write the file if that is due. Raises OSError."""
        with self._lock:
            if not self._changed or now < self._saved + _EACH_S:
                return
            text = json.dumps(self._table, separators=(",", ":"))
            self._saved = now
            self._changed = False
        files.write_whole(self._path, text.encode("ascii"), f"{self._path}.new")
