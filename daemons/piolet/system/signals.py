"""Signals that come at the wrong moment, kept for the right one."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Keep the signals that end a program, where it handles them itself, until the block's end; then handle the first.

    What is begun inside has a name by then, and can be ended. In a thread that gets no signals it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _ENDS}
    handled = {number: handler for number, handler in before.items() if callable(handler)}
    came: list[int] = []

    def keep(number: int, frame: FrameType | None) -> None:
        came.append(number)

    for number in handled:
        signal.signal(number, keep)
    try:
        yield
    finally:
        for number, handler in handled.items():
            signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0])
