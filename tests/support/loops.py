"""A selector's loop in a thread of its own."""

from __future__ import annotations

import os
import selectors
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def turning(selector: selectors.BaseSelector) -> Iterator[None]:
    """Call what is registered, as it becomes ready, until the block is over."""
    ends, end = os.pipe()
    selector.register(ends, selectors.EVENT_READ, None)

    def turn() -> None:
        while True:
            for key, _ in selector.select():
                if key.fd == ends:
                    return
                key.data()

    thread = threading.Thread(target=turn)
    thread.start()
    try:
        yield
    finally:
        os.write(end, b"x")
        thread.join(10)
        selector.unregister(ends)
        for descriptor in (ends, end):
            os.close(descriptor)
