"""What a job's process says to its parent: JSON lines on standard output."""

from __future__ import annotations

import json
import os
import time
from typing import Any

_INTERVAL_S = 0.5


class Speaker:
    """Progress to the parent, at most twice a second."""

    def __init__(self) -> None:
        self._next = 0.0

    def tell(self, text: str) -> None:
        """Say `text`, unless it is too soon."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _INTERVAL_S
            say({"progress": text})


def say(message: dict[str, Any]) -> None:
    """Write one line to the parent."""
    os.write(1, json.dumps(message).encode() + b"\n")
