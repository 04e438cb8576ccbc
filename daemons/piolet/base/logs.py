"""Log lines that nobody outside can forge, make endless, or make too many.

A record is one line, whatever users have put into it: control characters, what is not printable, and the backslash
itself are escaped; it is cut at a length. The lines of a traceback are indented, and only they are more than one. A
record that says for which user it is (`extra=logs.of(uid)`) counts against that user: so many lines a second, the rest
is left out, and how many were is told later. Standard library only.
"""

from __future__ import annotations

import logging
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from typing import IO

from piolet.base.rates import Rates

LENGTH_MOST = 2000
LINES_A_SECOND, LINES_BURST = 20, 100
_TOLD_EVERY_S = 10.0
_FRAMES_MOST, _CAUSES_MOST = 20, 3


def of(user: Hashable) -> dict[str, Hashable]:
    """Return what `extra=` takes for a record about a user; who is no uid is shown as it is."""
    return {"user": user}


def shown(text: str, most: int = LENGTH_MOST) -> str:
    """Return `text` as one line of printable characters, cut behind `most` of them."""
    if not text.isprintable() or "\\" in text:
        text = (
            "".join(
                char if char.isprintable() and char != "\\" else char.encode("unicode_escape").decode("ascii")
                for char in text[: most + 1]
            )
            + text[most + 1 :]
        )
    return text if len(text) <= most else f"{text[:most]}... ({len(text) - most} more)"


class Formatter(logging.Formatter):
    """Formats a record as one line, and a traceback as indented lines below it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of `record`, without a line end."""
        record.message = shown(record.getMessage())
        if self.usesTime():
            record.asctime = self.formatTime(record, self.datefmt)
        lines = [self.formatMessage(record)]
        if record.exc_info and record.exc_info[1] is not None:
            lines += _trace(record.exc_info[1])
        return "\n".join(lines)


class Limited(logging.StreamHandler[IO[str]]):
    """Writes records to `stream`, each user's at a limited rate."""

    def __init__(
        self,
        stream: IO[str],
        a_second: float = LINES_A_SECOND,
        burst: float = LINES_BURST,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(stream)
        self._clock = clock
        self._rates = Rates(a_second, burst, clock)
        self._left_out: Counter[Hashable] = Counter()
        self._next = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        """Write `record`, or leave it out."""
        user = getattr(record, "user", None)
        if user is not None and not self._rates.take(user):
            self._left_out[user] += 1
            return
        if self._left_out and self._clock() >= self._next:
            self._tell()
        super().emit(record)

    def close(self) -> None:
        """Tell what was left out and not told yet."""
        self.acquire()
        try:
            self._tell()
        finally:
            self.release()
        super().close()

    def _tell(self) -> None:
        self._next = self._clock() + _TOLD_EVERY_S
        counted, self._left_out = self._left_out, Counter()
        for user, count in counted.items():
            text = f"{count} lines about user {user} were left out: more than {self._rates.a_second:g} a second"
            super().emit(logging.LogRecord("piolet.logs", logging.WARNING, "", 0, text, None, None))


def configure(
    form: str = "%(name)s: %(message)s", level: int = logging.INFO, stream: IO[str] | None = None
) -> logging.Handler:
    """Have everything that this process logs written to `stream`, standard error by default, as `form` says.

    Returns the handler that does so. As logging.basicConfig, it does nothing where there is a handler already.
    """
    handler = Limited(sys.stderr if stream is None else stream)
    handler.setFormatter(Formatter(form))
    logging.basicConfig(handlers=[handler], level=level)
    return handler


def _trace(error: BaseException) -> Iterator[str]:
    """Yield where `error` was raised, a line for each frame, and what led to it."""
    at: BaseException | None = error
    for _ in range(_CAUSES_MOST):
        if at is None:
            return
        for frame in traceback.extract_tb(at.__traceback__)[-_FRAMES_MOST:]:
            yield f"  {shown(frame.filename)}:{frame.lineno} in {shown(frame.name)}"
        yield f"  {shown(f'{type(at).__name__}: {at}')}"
        at = at.__cause__ or (None if at.__suppress_context__ else at.__context__)
