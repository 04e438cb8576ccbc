"""Places for work that is bounded: so many in all, and fewer for one user, so that nobody takes them all.

Who finds no place waits in line behind the others of the same user first, and only then behind
everybody. How long one waits is for the caller to bound.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from weakref import WeakValueDictionary

from piolet.base.errors import ImageError


class Slots:
    """`total` places, at most `each` of them taken by one user; `what` names the work to those who wait."""

    def __init__(self, total: int, each: int, what: str) -> None:
        self._each = each
        self._text = f"waiting in line: {total} images are {what} at once, {each} of one user"
        self._all = asyncio.Semaphore(total)
        # A user's line is forgotten with the last one who stands in it.
        self._lines: WeakValueDictionary[int, asyncio.Semaphore] = WeakValueDictionary()

    @contextlib.asynccontextmanager
    async def place(self, uid: int, tell: Callable[[str], None]) -> AsyncIterator[None]:
        """Hold a place for the user `uid`; `tell` is told of a wait."""
        line = self._lines.setdefault(uid, asyncio.Semaphore(self._each))
        if line.locked() or self._all.locked():
            tell(self._text)
        async with line, self._all:
            yield


@contextlib.asynccontextmanager
async def within(limit_s: float, what: object, hint: str) -> AsyncIterator[None]:
    """Give the block up after `limit_s` seconds; raises ImageError then."""
    try:
        async with asyncio.timeout(limit_s) as limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise  # a system call's own
        raise ImageError(f"{what} was not ready after {limit_s:.0f} s and was given up", hint) from None
