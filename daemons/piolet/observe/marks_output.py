"""Finds marks in a job's output, line by line, by regular expressions of RE2: no pattern takes longer than linear time.

A pattern has a named group for each mark that it finds, as (?P<loss>[0-9.]+); a group `time` says when, in seconds
since 1970 or as 2026-11-29T12:00:00. A line `piolet-mark loss=0.31 step=200` is understood always: a program in a
container that has no `piolet` prints it. Runs as the user; the output is the user's, and read within bounds.
"""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

from piolet.base import files
from piolet.base.errors import ConfigError, ObserveError
from piolet.observe import marks
from piolet.observe.marks import OUTPUT, Said

WORD = "piolet-mark"
READ_MOST = 256 << 20
LINE_MOST = 16 << 10
SECONDS_MOST = 60.0
PATTERN_MOST, PATTERNS_MOST = 1000, 50
_MEMORY = 8 << 20  # of a pattern
_TIME = "time"
_NUMBER = r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[+-]?(?:nan|inf)"
_END = r"(?:[^0-9A-Za-z_.]|\.(?:\s|$)|$)"  # not in the middle of a number, or of a word
_RATE = "tok(?:ens?)?(?:/s(?:ec(?:ond)?)?|[_ ]per[_ ]sec(?:ond)?)"
USUAL = (
    rf"(?i)\b(?:train[_ ]|lm[_ ])?loss['\"]?\s*[=:|]?\s*(?P<loss>{_NUMBER}){_END}",
    rf"(?i)\b(?:global[_ ])?(?:step|iteration|iter)['\"]?\s*[=:|]?\s*(?P<step>[0-9]+){_END}",
    rf"(?i)\b(?:{_RATE}|tps)['\"]?\s*[=:|]?\s*(?P<tokens_per_second>{_NUMBER}){_END}",
    rf"(?P<tokens_per_second>{_NUMBER})\s*(?i:{_RATE})\b",
)


class Finder:
    """Finds marks in lines. Raises ConfigError for a pattern that is none."""

    def __init__(self, patterns: Sequence[str] = USUAL) -> None:
        import re2  # type: ignore[import-untyped]  # only who looks for marks loads it

        options = re2.Options()
        options.max_mem, options.log_errors = _MEMORY, False
        if len(patterns) > PATTERNS_MOST:
            raise ConfigError(f"there are more than {PATTERNS_MOST} patterns of marks")
        self._patterns: list[Any] = []
        for pattern in patterns:
            try:
                if len(pattern) > PATTERN_MOST:
                    raise ValueError(f"it is longer than {PATTERN_MOST} letters")
                made = re2.compile(pattern, options)
            except (re2.error, ValueError) as error:
                raise ConfigError(f"'{pattern[:60]}' is no pattern of marks: {_why(error)}", _HINT) from None
            names = set(made.groupindex) - {_TIME}
            if not names or not all(marks.NAME.fullmatch(name) for name in names):
                raise ConfigError(f"'{pattern[:60]}' names no mark", _HINT)
            self._patterns.append(made)

    def marks(self, line: str) -> Iterator[Said]:
        """Yield the marks in a line."""
        first, _, rest = line.strip().partition(" ")
        if first == WORD:
            yield from _own(rest)
            return
        seen = set()
        for pattern in self._patterns:
            match = pattern.search(line)
            if match is None:
                continue
            groups = match.groupdict()
            when = _when(groups.pop(_TIME, None) or "")
            for name, text in groups.items():
                value = marks.number(text) if text else None
                if value is not None and name not in seen:
                    seen.add(name)
                    yield Said(name, value, when, OUTPUT)


_HINT = r"a pattern of RE2 with a named group for each mark, for example 'loss: (?P<loss>[0-9.]+)'"


def find(path: str, finder: Finder, seconds: float = SECONDS_MOST) -> tuple[list[Said], str]:
    """Return the marks in a file, and what was left out, '': nothing. Raises ObserveError: it cannot be read.

    Of a file that is longer than READ_MOST its end is read.
    """
    deadline = time.monotonic() + seconds
    found: list[Said] = []
    left = ""
    try:
        descriptor = files.open_regular(path)
    except (OSError, files.NotRegularError) as error:
        raise ObserveError(f"cannot read {path}: {getattr(error, 'strerror', None) or 'it is no file'}") from None
    with os.fdopen(descriptor, "rb") as file:
        size = os.fstat(descriptor).st_size
        if size > READ_MOST:
            file.seek(size - READ_MOST)
            left = f"the first {size - READ_MOST} bytes of {path} were not read"
        read = 0
        while (data := file.readline(LINE_MOST)) and read < READ_MOST:
            read += len(data)
            if time.monotonic() > deadline:
                return found, f"{path} was read for {seconds:g} s, up to byte {max(0, size - READ_MOST) + read}"
            found += finder.marks(data.decode("utf-8", "replace"))
            if len(found) >= marks.MOST:
                return found[: marks.MOST], f"{path} has more than {marks.MOST} marks"
    return found, left


def _own(text: str) -> Iterator[Said]:
    pairs = [word.partition("=")[::2] for word in text.split()[:50]]
    when = next((marks.number(value) for name, value in pairs if name == _TIME), None)
    for name, value in pairs:
        number = marks.number(value)
        if name != _TIME and number is not None and marks.NAME.fullmatch(name):
            yield Said(name, number, when if when is not None and 0 <= when < 1e11 else None, OUTPUT)


def _when(text: str) -> float | None:
    seconds = marks.number(text) if text else None
    if seconds is not None:
        return seconds if 0 <= seconds < 1e11 else None
    try:
        when = datetime.datetime.fromisoformat(text.strip().replace(",", "."))
        return (when if when.tzinfo else when.astimezone()).timestamp()
    except (ValueError, OverflowError, OSError):
        return None


def _why(error: Exception) -> str:
    said = error.args[0] if error.args else "it is malformed"
    return said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)
