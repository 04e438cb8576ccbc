"""What a person sees while a cluster comes up: one aligned line a step, with the time that it took."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

WIDTH = 56


class Report:
    """Writes progress lines. On a terminal the line of the running step is written over in place."""

    def __init__(self, stream: TextIO = sys.stdout, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._terminal = stream.isatty()
        self._step: str | None = None

    def line(self, text: str = "") -> None:
        self._write(f"{text}\n")

    def _write(self, text: str) -> None:
        # A reader that went away must not stop what is under way, least of all the tidying up.
        with suppress(OSError):
            self._stream.write(text)
            self._stream.flush()

    def note(self, text: str) -> None:
        """Say what the running step is at; it matters only where somebody is watching or it is slow."""
        if self._terminal:
            self._write(f"\r\033[K  {self._step or '':<12}{text}")
        else:
            self.line(f"  {self._step or '':<12}{text}")

    @contextmanager
    def step(self, name: str) -> Iterator[list[str]]:
        """Time a step. The caller appends what is worth saying to the list; it is shown at the end."""
        self._step = name
        said: list[str] = []
        if self._terminal:
            self.note("…")
        began = self._clock()
        try:
            yield said
        except BaseException:
            if self._terminal:
                self._write("\r\033[K")
            self.line(f"  {name:<12}failed after {self._clock() - began:.1f} s")
            raise
        if self._terminal:
            self._write("\r\033[K")
        self.line(f"  {name:<12}{'; '.join(said):<{WIDTH}} {self._clock() - began:5.1f} s")
