"""Threads that read for the sampler what may hang: a driver, a file system, a card.

A lane does one thing at a time. What does not come back within the time of a tick is left alone with its thread: the
others are not held up, and the lane takes nothing new until it has come back. So a node whose GPUs hang has the figures
of everything else, and one thread that waits.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable
from typing import Any


class Lane:
    """One thread. `name` is of what it reads."""

    def __init__(self, name: str, done: threading.Condition) -> None:
        self.name = name
        self._done = done
        self._work: queue.Queue[Callable[[], Any]] = queue.Queue(1)
        self._result: Any = None
        self._failed: Exception | None = None
        self.busy = False
        threading.Thread(target=self._run, name=f"lane-{name}", daemon=True).start()

    def give(self, work: Callable[[], Any]) -> bool:
        """Begin; return whether it could: it cannot while the last has not come back."""
        with self._done:
            if self.busy:
                return False
            self.busy, self._result, self._failed = True, None, None
        self._work.put(work)
        return True

    def take(self) -> Any:
        """Return what the last work returned, once. Raises what it raised; TimeoutError: it has not come back."""
        with self._done:
            if self.busy:
                raise TimeoutError("it does not answer")
            result, failed = self._result, self._failed
            self._result = self._failed = None
        if failed is not None:
            raise failed
        return result

    def _run(self) -> None:
        while True:
            work = self._work.get()
            result, failed = None, None
            try:
                result = work()
            except Exception as error:  # noqa: BLE001 - handed on to who asked
                failed = error
            with self._done:
                self._result, self._failed, self.busy = result, failed, False
                self._done.notify_all()


def wait(lanes: Iterable[Lane], done: threading.Condition, seconds: float) -> None:
    """Wait until all lanes are done, at most so long."""
    waited_for = list(lanes)
    with done:
        done.wait_for(lambda: not any(lane.busy for lane in waited_for), seconds)
