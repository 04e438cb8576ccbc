"""The schema machine of `piolet.toml`: settings as the fields of frozen dataclasses, one for each section.

The dataclasses are the only definition: the loader, the commented sample (`piolet config sample`) and the
documentation derive from them. An unknown key, a value of the wrong type and one that cannot be meant are errors with
file, line and the nearest known name.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin, get_type_hints

from piolet.base.errors import ConfigError
from piolet.base.nearest import nearest

_SOCKET_MOST = 107  # bytes of the path of a socket, says the kernel
_NUMBER_MOST = 2**31 - 1


Check = Callable[[str], None]


def setting(default: Any, text: str, check: Check | None = None, *, least: int = 0) -> Any:
    """Define a setting. `check` raises ConfigError for a string, each one of an array; `least` is for numbers."""
    values = tuple(default) if isinstance(default, list) else default
    return field(default=values, metadata={"help": text, "check": check, "least": least})


def found(*places: str, usual: str) -> str:
    """Return the first of these programs that is there; the usual one where none is."""
    return next((place for place in places if os.access(place, os.X_OK)), usual)


def absolute(text: str) -> None:
    """Check that it is an absolute path."""
    if not text.startswith("/") or "\0" in text:
        raise ConfigError(f"'{text}' is not an absolute path")


def socket_path(text: str) -> None:
    """Check that it is an absolute path that a socket can have."""
    absolute(text)
    if len(text.encode()) > _SOCKET_MOST:
        raise ConfigError(f"'{text}' is too long for a socket: {_SOCKET_MOST} bytes at most")


def absolute_or_empty(text: str) -> None:
    """Check that it is an absolute path, or empty."""
    if text:
        absolute(text)


def not_empty(text: str) -> None:
    """Check that it is not empty."""
    if not text:
        raise ConfigError("it is empty")


@dataclass(frozen=True)
class SettingPlace:
    """Where a section or one of its settings stands, as errors name it."""

    origin: str
    text: str
    section: str
    key: str | None = None

    def __str__(self) -> str:
        from piolet.base import places  # only errors need them
        from piolet.base.positions import scan

        text = self.text.replace("\r\n", "\n")
        keys = scan(text).keys
        span = keys.get((self.section, self.key or "")) or keys.get((self.section,))
        return self.origin if span is None else f"{self.origin}:{places.line_number(text, span[0])}"


def section(kind: Any, table: dict[str, Any], place: SettingPlace) -> Any:
    """Return a section, the dataclass `kind`, of what `table` says. Raises ConfigError."""
    types = get_type_hints(kind)
    settings = {setting.name: setting.metadata for setting in dataclasses.fields(kind)}
    values: dict[str, Any] = {}
    for key, value in table.items():
        here = dataclasses.replace(place, key=key)
        if key not in types:
            raise ConfigError(f"{here}: [{place.section}]: unknown key '{key}'", known(key, types))
        try:
            values[key] = _typed(value, types[key], settings[key]["least"])
        except ConfigError as error:
            raise ConfigError(f"{here}: [{place.section}] {key} {error.message}") from None
        check: Check | None = settings[key]["check"]
        try:
            for text in value if isinstance(value, list) else [value]:
                if check is not None:
                    check(text)
        except ConfigError as error:
            raise ConfigError(f"{here}: [{place.section}] {key}: {error.message}", error.hint) from None
    return kind(**values)


def _typed(value: Any, wanted: Any, least: int) -> Any:
    if get_origin(wanted) is Literal:
        if value not in get_args(wanted):
            raise ConfigError(f"must be one of {', '.join(map(repr, get_args(wanted)))}, not {value!r}")
        return value
    if get_origin(wanted) is tuple:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ConfigError("must be an array of strings")
        return tuple(value)
    if type(value) is not wanted:
        names = {bool: "true or false", int: "a whole number", str: "a string"}
        raise ConfigError(f"must be {names[wanted]}, not {value!r}")
    if wanted is int and value < least:
        raise ConfigError(f"must be at least {least}, not {value}")
    if wanted is int and value > _NUMBER_MOST:
        raise ConfigError(f"must be at most {_NUMBER_MOST}, not {value}")
    return value


def known(name: str, there: Iterable[str]) -> str:
    """Return a hint: what is there that is nearly called `name`, or all that is there."""
    near = nearest(name, there)
    return f"did you mean '{near}'?" if near else f"known here: {', '.join(sorted(there))}"
