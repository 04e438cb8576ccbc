"""Waiting for what is to happen, and never for a time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

# How many times slower than a machine this one is: a guest that is emulated.
PATIENCE = float(os.environ.get("PIOLET_TEST_PATIENCE", "1"))


def wait_until(happened: Callable[[], object], limit_s: float = 20.0, what: str = "it") -> None:
    """Return when `happened()` is true; AssertionError after `limit_s` seconds (times PATIENCE)."""
    deadline = time.monotonic() + limit_s * PATIENCE
    while not happened():
        assert time.monotonic() < deadline, f"{what} did not happen in {limit_s * PATIENCE:.0f} s"
        time.sleep(0.02)
