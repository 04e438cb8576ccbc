"""Places in texts that users wrote, as errors show them: the line, with '?' for what no terminal should get.

A line may be a megabyte long: of a long one the part around the column is shown (`of_span`), or the first part
(`of_line`, for readers that count lines and columns themselves).
"""

from __future__ import annotations

from collections.abc import Sequence

from piolet.base.errors import Location

_AROUND, _FIRST = 160, 240
_CONTROLS = dict.fromkeys((*range(9), *range(10, 32), *range(127, 160)), "?")


def line_number(text: str | bytes | bytearray, offset: int) -> int:
    """Return the line, from 1, that `offset` is in; lines end with plain newlines."""
    return (text.count("\n", 0, offset) if isinstance(text, str) else text.count(b"\n", 0, offset)) + 1


def of_span(path: str, text: str, span: tuple[int, int]) -> Location:
    """Return the place of `span`, two offsets into `text`; control characters of the line are shown as '?'."""
    start, end = span
    line_start = text.rfind("\n", 0, start) + 1
    line_end = text.find("\n", start)
    line = text[line_start : len(text) if line_end < 0 else line_end]
    width = max(1, min(end, line_start + len(line)) - start)
    return _Excerpt(path, line_number(text, start), start - line_start + 1, line.translate(_CONTROLS), width)


def of_line(path: str, lines: Sequence[str], line: int, column: int, width: int) -> Location:
    """Return the place in one of `lines`, counted from 0 as the column is; what is not printable is shown as '?'."""
    text = lines[line] if line < len(lines) else ""
    shown = "".join(c if c == "\t" or c.isprintable() else "?" for c in text)
    return Location(path, line + 1, column + 1, shown[:_FIRST], width)


class _Excerpt(Location):
    """A location of whose line only the part around the column is shown."""

    def render(self) -> str:
        """Return the line, or the part of it that matters, and a caret below."""
        if len(self.text) <= _AROUND:
            return super().render()
        start = max(0, self.column - 1 - _AROUND // 2)
        return Location(
            self.path, self.line, self.column - start, self.text[start : start + _AROUND], self.width
        ).render()
