"""Progress for a person who waits, on standard error: nothing is left of it on a terminal, and little elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator

from piolet.cli.main import printable

_PLAIN_INTERVAL_S = 5.0


class Progress:
    """Shows the latest text: one line that is rewritten on a terminal, else a line every few seconds."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._next = 0.0
        self._last = ""
        self._held = ""

    def show(self, text: str) -> None:
        """Show `text`, unless it is too soon or the same as before."""
        if self._terminal:
            width = _columns()
            print(f"\r\x1b[K{printable(text)[: width - 1]}", end="", file=sys.stderr, flush=True)
            self._last = text
        elif text != self._last and time.monotonic() >= self._next:
            self._last, self._held, self._next = text, "", time.monotonic() + _PLAIN_INTERVAL_S
            print(printable(text), file=sys.stderr, flush=True)
        elif text != self._last:
            self._held = text

    def end(self) -> None:
        """Leave an empty line on a terminal; elsewhere show the last text, if it came too soon to be shown."""
        if self._terminal and self._last:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        elif self._held:
            print(printable(self._held), file=sys.stderr, flush=True)


@contextlib.contextmanager
def progress(*, quiet: bool = False) -> Iterator[Callable[[str], None]]:
    """Give what shows a text on standard error while the block runs, or nothing if `quiet`."""
    if quiet:
        yield lambda _: None
        return
    shown = Progress()
    try:
        yield shown.show
    finally:
        shown.end()


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except OSError:
        return 80
