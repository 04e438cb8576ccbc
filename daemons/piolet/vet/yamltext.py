"""YAML text as a tree in which everything knows its line and column.

It takes the part of YAML that a protocol needs and refuses the rest with its place: anchors and aliases (a
small file can mean a huge one), tags, several documents, a key that is there twice, nesting beyond a limit.
What a scalar means is decided by whoever knows its type, so that `NCCL_DEBUG: on` stays the text `on`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from piolet.base import files, places
from piolet.base.errors import Location, VetError

SIZE_LIMIT = 1 << 20
DEPTH_LIMIT = 16


@dataclass(frozen=True)
class Mark:
    """Where something stands: line and column count from 0, as the YAML library counts."""

    line: int
    column: int
    width: int


@dataclass(frozen=True)
class Scalar:
    """A single value as it was written. `plain` tells `5` from `"5"`."""

    text: str
    plain: bool
    place: Mark


@dataclass(frozen=True)
class Sequence:
    """A list."""

    items: list[Node]
    place: Mark


@dataclass(frozen=True)
class Mapping:
    """A table, with the places of its keys."""

    items: dict[str, Node]
    keys: dict[str, Mark]
    place: Mark


Node = Scalar | Sequence | Mapping


@dataclass(frozen=True)
class YamlFile:
    """A parsed file: its root, and how its places become locations."""

    path: str
    lines: list[str]
    root: Node

    def error(self, message: str, place: Mark, hint: str | None = None) -> VetError:
        """Return an error that points to `place`."""
        return VetError(message, hint, _location(self.path, self.lines, place))


@dataclass
class _Builder:
    path: str
    lines: list[str]
    events: Iterator[yaml.Event]
    depth: int = field(default=0)

    def fail(self, message: str, place: Mark, hint: str | None = None) -> VetError:
        return VetError(message, hint, _location(self.path, self.lines, place))

    def node(self, event: yaml.Event) -> Node:
        place = _place(event)
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise self.fail("anchors and aliases are not allowed in a protocol", place, "write the values out")
        if getattr(event, "tag", None) is not None:
            raise self.fail("tags are not allowed in a protocol", place)
        if isinstance(event, yaml.ScalarEvent):
            return Scalar(str(event.value), not event.style, place)
        self.depth += 1
        if self.depth > DEPTH_LIMIT:
            raise self.fail(f"lists or tables are nested more than {DEPTH_LIMIT} deep", place)
        node = self.sequence(place) if isinstance(event, yaml.SequenceStartEvent) else self.mapping(place)
        self.depth -= 1
        return node

    def sequence(self, place: Mark) -> Sequence:
        items: list[Node] = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            items.append(self.node(event))
        return Sequence(items, place)

    def mapping(self, place: Mark) -> Mapping:
        items: dict[str, Node] = {}
        keys: dict[str, Mark] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            key = self.node(event)
            if not isinstance(key, Scalar):
                raise self.fail("a key must be a word", key.place)
            if key.text in keys:
                first = keys[key.text].line + 1
                raise self.fail(f"'{key.text}' is there twice, first in line {first}", key.place, "leave one out")
            keys[key.text] = key.place
            items[key.text] = self.node(next(self.events))
        return Mapping(items, keys, place)


def read(path: str) -> YamlFile:
    """Return the file at `path`, parsed. Raises VetError."""
    try:
        data, _ = files.read_small(path, SIZE_LIMIT)
    except files.NotRegularError:
        raise VetError(f"{path} is not a regular file") from None
    except OSError as error:
        raise VetError(f"cannot read the protocol {path}: {error.strerror}") from None
    if len(data) > SIZE_LIMIT:
        raise VetError(f"the protocol {path} is longer than the limit of {SIZE_LIMIT} bytes")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = places.line_number(data, error.start)
        raise VetError(f"the protocol {path} is not UTF-8: line {line}") from None
    return parse(path, text)


def parse(path: str, text: str) -> YamlFile:
    """Return `text` parsed; `path` is named in errors. Raises VetError."""
    text = text.removeprefix("\ufeff")
    lines = text.splitlines() or [""]
    try:
        # Events do not nest, so that a deep document costs no stack before its depth is known.
        events = iter(yaml.parse(text, Loader=yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader))
        builder = _Builder(path, lines, events)
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                break
        else:
            raise VetError(f"the protocol {path} is empty", "see `piolet vet list` for what can be checked")
        root = builder.node(next(events))
        if any(isinstance(event, yaml.DocumentStartEvent) for event in events):
            raise VetError(f"the protocol {path} holds more than one document")
    except yaml.MarkedYAMLError as error:
        mark: Any = error.problem_mark or error.context_mark
        at = Mark(mark.line, mark.column, 1) if mark is not None else Mark(0, 0, 1)
        if at.line >= len(lines):  # the file ends where something is missing
            at = Mark(len(lines) - 1, len(lines[-1]), 1)
        raise VetError(
            f"this is not valid YAML: {error.problem or 'malformed'}", _hint(lines, at), _location(path, lines, at)
        ) from None
    except yaml.YAMLError as error:
        raise VetError(f"the protocol {path} is not valid YAML: {str(error).splitlines()[0]}") from None
    return YamlFile(path, lines, root)


def _place(event: yaml.Event) -> Mark:
    start: Any = event.start_mark
    end: Any = event.end_mark
    width = end.column - start.column if end.line == start.line else 1
    return Mark(start.line, start.column, max(1, width))


def _location(path: str, lines: list[str], place: Mark) -> Location:
    return places.of_line(path, lines, place.line, place.column, place.width)


def _hint(lines: list[str], place: Mark) -> str | None:
    if "\t" in lines[place.line][: len(lines[place.line]) - len(lines[place.line].lstrip())]:
        return "YAML is indented with spaces, not with tabs"
    return None
