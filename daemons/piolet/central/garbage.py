"""Collects what refers to itself in small portions, instead of by looking at all of memory now and then.

What rules know is some hundred thousand objects that live for long. Python's full collections look at each of them, 0.1
to 0.4 s every few seconds while records pour in, in which nothing else runs (docs/benchmarks.md). So there are none:
each minute what is new is looked at, and what has lived through that is not looked at again for a day.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable

_EVERY_S, _ALL_S = 60.0, 86400.0
_NEVER = 1_000_000_000


class Collector:
    """Does that in a thread, until it is stopped."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._all = clock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="garbage", daemon=True)

    def start(self) -> None:
        """Begin."""
        young, middle, _ = gc.get_threshold()
        gc.set_threshold(young, middle, _NEVER)
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._ended.set()
        self._thread.join()

    def collect(self) -> None:
        """Look at what is new, or once a day at everything."""
        if self._clock() - self._all >= _ALL_S:
            self._all = self._clock()
            gc.unfreeze()
        gc.collect()
        gc.freeze()

    def _run(self) -> None:
        while not self._ended.wait(_EVERY_S):
            self.collect()
