"""Where every key and value of a TOML text stands.

tomllib gives values without positions. This scanner walks the same text and notes the span of each
key, value, array element and table header. It decides nothing: tomllib says what is valid. Where the
text is not TOML the scanner stops, and so does tomllib, at the same place or before it.

It runs first, since it also refuses what would make tomllib slow or deep: tomllib needs a time that
grows with the square of the parts of a dotted key, and recurses for nested arrays and tables.
"""

from __future__ import annotations

import contextlib
import re
import tomllib
from dataclasses import dataclass, field

NESTING_LIMIT = 32

Path = tuple[str | int, ...]
Span = tuple[int, int]

_BLANK = re.compile(r"[ \t]*")
_FILLER = re.compile(r"(?:[ \t\n]+|#[^\n]*)*")
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_BASIC = re.compile(r'"(?:[^"\\\n]|\\.)*"')
_LITERAL = re.compile(r"'[^'\n]*'")
_LONG_BASIC = re.compile(r'"""(?:[^\\]|\\.)*?"{3,5}', re.DOTALL)
_LONG_LITERAL = re.compile(r"'''.*?'{3,5}", re.DOTALL)
_SCALAR = re.compile(r"[^ \t\n,\]}#]+(?: \d\d:[^ \t\n,\]}#]+)?")


@dataclass
class Positions:
    """What was found before the scanner stopped. Spans are offsets into the text, the end excluded.

    repeated   the second place of a key or table that is there twice, and the first
    too_deep   where nesting went beyond the limit
    """

    keys: dict[Path, Span] = field(default_factory=dict)
    values: dict[Path, Span] = field(default_factory=dict)
    repeated: tuple[Path, Span, Span] | None = None
    too_deep: Span | None = None


class _StopError(Exception):
    """The text from here on is not TOML, or nothing more has to be known."""


def scan(text: str) -> Positions:
    """Return the positions in `text`, whose line ends are plain newlines."""
    scanner = _Scanner(text)
    with contextlib.suppress(_StopError, IndexError):
        scanner.document()
    return scanner.found


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.found = Positions()
        self.last_index: dict[Path, int] = {}

    def document(self) -> None:
        text, pos = self.text, 0
        header: Path = ()
        while (pos := self.skip(_FILLER, pos)) < len(text):
            if text[pos] == "[":
                pos, header = self.header(pos)
            else:
                pos = self.pair(pos, header, 0)
            pos = self.skip(_BLANK, pos)
            if pos < len(text) and text[pos] not in "\n#":
                raise _StopError

    def skip(self, pattern: re.Pattern[str], pos: int) -> int:
        match = pattern.match(self.text, pos)
        if match is None:
            raise _StopError
        return match.end()

    def header(self, start: int) -> tuple[int, Path]:
        brackets = "[[" if self.text.startswith("[[", start) else "["
        parts, pos = self.key(start + len(brackets))
        closing = "]" * len(brackets)
        if not self.text.startswith(closing, pos):
            raise _StopError
        end = pos + len(closing)
        path: Path = ()
        for name, span in parts[:-1]:
            path = self.enter((*path, name), span)
        name, span = parts[-1]
        path = (*path, name)
        self.found.keys.setdefault(path, span)
        if brackets == "[[":
            self.last_index[path] = self.last_index.get(path, -1) + 1
            path = (*path, self.last_index[path])
        elif path in self.last_index:
            path = (*path, self.last_index[path])
        self.note(path, (start, end), span)
        return end, path

    def enter(self, path: Path, span: Span) -> Path:
        """Return `path`, or its newest element where it is an array of tables."""
        self.found.keys.setdefault(path, span)
        return (*path, self.last_index[path]) if path in self.last_index else path

    def note(self, path: Path, value: Span, key: Span) -> None:
        first = self.found.values.setdefault(path, value)
        if first is not value:
            self.found.repeated = (path, key, first)
            raise _StopError

    def key(self, pos: int) -> tuple[list[tuple[str, Span]], int]:
        """Return the parts of a dotted key and the offset of what follows it."""
        parts: list[tuple[str, Span]] = []
        while True:
            pos = self.skip(_BLANK, pos)
            pattern = {'"': _BASIC, "'": _LITERAL}.get(self.text[pos], _BARE)
            end = self.skip(pattern, pos)
            parts.append((self.name(self.text[pos:end]), (pos, end)))
            if len(parts) > NESTING_LIMIT:
                self.refuse_depth((pos, end))
            pos = self.skip(_BLANK, end)
            if self.text[pos] != ".":
                return parts, pos
            pos += 1

    def name(self, raw: str) -> str:
        if raw[0] == '"' and "\\" in raw:
            try:
                return next(iter(tomllib.loads(raw + "=0")))
            except ValueError:
                raise _StopError from None
        return raw[1:-1] if raw[0] in "\"'" else raw

    def pair(self, start: int, table: Path, depth: int) -> int:
        parts, pos = self.key(start)
        if self.text[pos] != "=":
            raise _StopError
        path = table
        for name, span in parts[:-1]:
            path = self.enter((*path, name), span)
        name, span = parts[-1]
        path = (*path, name)
        self.found.keys.setdefault(path, span)
        return self.value(self.skip(_BLANK, pos + 1), path, depth, span)

    def value(self, start: int, path: Path, depth: int, key: Span) -> int:
        if depth > NESTING_LIMIT:
            self.refuse_depth((start, start + 1))
        first = self.text[start]
        if first == "[":
            self.note(path, (start, start + 1), key)
            end = self.array(start + 1, path, depth + 1)
        elif first == "{":
            self.note(path, (start, start + 1), key)
            end = self.inline_table(start + 1, path, depth + 1)
        else:
            end = self.skip(self.scalar(first, start), start)
            self.note(path, (start, end), key)
        self.found.values[path] = (start, end)
        return end

    def scalar(self, first: str, start: int) -> re.Pattern[str]:
        long = self.text.startswith(first * 3, start)
        if first == '"':
            return _LONG_BASIC if long else _BASIC
        if first == "'":
            return _LONG_LITERAL if long else _LITERAL
        return _SCALAR

    def array(self, pos: int, path: Path, depth: int) -> int:
        index = 0
        while self.text[pos := self.skip(_FILLER, pos)] != "]":
            element = (*path, index)
            pos = self.skip(_FILLER, self.value(pos, element, depth, (pos, pos + 1)))
            index += 1
            if self.text[pos] == ",":
                pos += 1
            elif self.text[pos] != "]":
                raise _StopError
        return pos + 1

    def inline_table(self, pos: int, path: Path, depth: int) -> int:
        while self.text[pos := self.skip(_FILLER, pos)] != "}":
            pos = self.skip(_FILLER, self.pair(pos, path, depth))
            if self.text[pos] == ",":
                pos += 1
            elif self.text[pos] != "}":
                raise _StopError
        return pos + 1

    def refuse_depth(self, span: Span) -> None:
        self.found.too_deep = span
        raise _StopError
