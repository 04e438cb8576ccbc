"""One definition file, read and parsed, with the place of everything in it.

It refuses what is not a regular file, is longer than a mebibyte, is not UTF-8, is not TOML, or is
nested too deep. Opening never waits: a FIFO or a device in the file's place is refused, not opened.
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from piolet.base import places
from piolet.base.errors import EnvironmentFileError, Location
from piolet.base.files import NotRegularError, Stamp, read_small
from piolet.base.positions import NESTING_LIMIT, Path, Positions, scan
from piolet.environment import secrets

SIZE_LIMIT = 1 << 20

# `key: value` and `- item`, as no line of TOML begins.
_YAML = re.compile(r"\s*(?:- |[A-Za-z_][\w-]*:(?:\s|$))")
_IMAGES = ((b"hsqs", "a SquashFS image"), (b"#!/usr/bin/env run-singularity", "an image of apptainer's"))
_AT = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")


@dataclass(frozen=True, eq=False)
class Source:
    """A parsed file, equal to itself only.

    path    absolute
    text    with plain newlines
    stamp   None for text that is not from a file
    folder  what `${EDF_DIR}` means in text that is not from a file
    """

    path: str
    text: str
    data: dict[str, Any]
    positions: Positions
    stamp: Stamp | None = None
    folder: str = ""

    @cached_property
    def directory(self) -> str:
        """The directory that `${EDF_DIR}` means in this file."""
        return self.folder or os.path.dirname(self.path)

    def locate(self, path: Path, *, key: bool = False, fragment: str | None = None) -> Location:
        """Return where the value of `path` stands, or its key, or the first `fragment` within the value.

        What has no place of its own (an implied table) is where its nearest parent is.
        """
        spans = self.positions.keys if key else self.positions.values
        others = self.positions.values if key else self.positions.keys
        while path and path not in spans and path not in others:
            path = path[:-1]
        start, end = spans.get(path) or others.get(path) or (0, 1)
        if fragment is not None:
            found = self.text.find(fragment, start, end)
            if found >= 0:
                start, end = found, found + len(fragment)
        return _place(self.path, self.text, (start, end))


def _place(path: str, text: str, span: tuple[int, int]) -> Location:
    """Return a place, whose line is shown without the value of a secret."""
    found = places.of_span(path, text, span)
    return replace(found, text=secrets.line(found.text))


def read(path: str) -> Source:
    """Return the file at the absolute `path`. Raises EnvironmentFileError."""
    return parse(path, *text_of(path))


def text_of(path: str) -> tuple[str, Stamp]:
    """Return what the file at the absolute `path` holds. Raises EnvironmentFileError."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a device may do something when it is opened
            raise NotRegularError(path)
        data, status = read_small(path, SIZE_LIMIT)
    except NotRegularError:
        raise EnvironmentFileError(f"{path} is not a regular file") from None
    except OSError as error:
        raise EnvironmentFileError(f"cannot read {path}: {error.strerror}") from None
    for magic, what in _IMAGES:
        if data.startswith(magic):
            hint = f'write a definition file that names the image: image = "{path}"'
            raise EnvironmentFileError(f"{path} is {what}, and no definition file", hint)
    if status.st_size > SIZE_LIMIT or len(data) > SIZE_LIMIT:
        size = max(status.st_size, len(data))
        raise EnvironmentFileError(
            f"{path} is {size} bytes long, more than the limit of {SIZE_LIMIT} bytes",
            "a definition file holds settings; put data into a file that is mounted",
        )
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = places.line_number(data, error.start)
        raise EnvironmentFileError(
            f"{path} is not UTF-8: byte {error.start} in line {line} is 0x{data[error.start]:02x}",
            "a definition file is text in UTF-8",
        ) from None
    return text, Stamp.of(status)


def parse(path: str, text: str, stamp: Stamp | None = None, folder: str = "") -> Source:
    """Return `text` parsed; `path` is named in errors. A byte order mark is skipped."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    positions = scan(text)
    if positions.too_deep is not None:
        raise EnvironmentFileError(
            f"tables or arrays are nested more than {NESTING_LIMIT} deep",
            None,
            _place(path, text, positions.too_deep),
        )
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise _syntax_error(path, text, positions, str(error)) from None
    return Source(path, text, data, positions, stamp, folder)


def _syntax_error(path: str, text: str, positions: Positions, message: str) -> EnvironmentFileError:
    match = _AT.search(message)
    start = len(text.rstrip("\n")) if match is None or match[1] is None else _offset(text, int(match[1]), int(match[2]))
    if positions.repeated is not None and positions.repeated[1][0] <= start:
        name, again, first = positions.repeated
        line = places.line_number(text, first[0])
        what = ".".join(map(str, name))
        return EnvironmentFileError(
            f"'{what}' is there twice, first in line {line}", "leave one of them out", _place(path, text, again)
        )
    what = message[: match.start()] if match else message
    other = _other_language(path, text)
    if other is not None:
        where = places.of_span(path, text, (start, start + 1))
        return EnvironmentFileError(f"this is {other[0]}, and a definition file is TOML", other[1], where)
    return EnvironmentFileError(
        f"this is not valid TOML: {what[:200]}",
        _syntax_hint(text, start, what),
        _place(path, text, (start, start + 1)),
    )


def _other_language(path: str, text: str) -> tuple[str, str] | None:
    """Return what a file that is no TOML is, where that is plain to see, and a hint."""
    first = next((line for line in text.splitlines() if line.strip() and not line.startswith("#")), "")
    if path.endswith((".yaml", ".yml")) or first.strip() == "---" or _YAML.match(first):
        return "YAML", 'a protocol for vetting is given by --vet; a definition begins like image = "…"'
    if first.lstrip().startswith("{") or path.endswith(".json"):
        return "JSON", 'a definition begins like image = "…"'
    if text.startswith("#!"):
        return "a script", "the script stands behind the options, the definition file behind --environment="
    return None


def _offset(text: str, line: int, column: int) -> int:
    start = 0
    for _ in range(line - 1):
        start = text.index("\n", start) + 1
    return start + column - 1


def _syntax_hint(text: str, start: int, message: str) -> str | None:
    at = text[start : start + 1]
    if at == "," and message.startswith("Expected newline"):
        return "entries of a table stand on lines of their own, without commas"
    if message == "Invalid value" and text[start : start + 5].lower().startswith(("true", "false")):
        return "true and false are written small"
    if message == "Invalid value" and (at.isalpha() or at in "/.$~"):
        return 'text stands in quotes: "…"'
    if message == r"Illegal character '\n'":
        return "the text has no quote at its end; text of several lines stands in three quotes"
    if message.startswith(("Expected '='", "Invalid statement")) and at.isalpha() and not at.isascii():
        return f"a name with '{at}' in it stands in quotes"
    return None
