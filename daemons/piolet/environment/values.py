"""A value of a definition file as an entry, if it is of the kind that it has to be."""

from __future__ import annotations

from typing import Any

from piolet.base.errors import EnvironmentFileError
from piolet.base.positions import Path
from piolet.environment.layer import Entry
from piolet.environment.source import Source


def scalar(source: Source, path: Path, kind: type, value: Any) -> Entry:
    """Return the entry of a `value` that has to be of `kind`: str or bool. Raises EnvironmentFileError."""
    entry = Entry(value, source, path)
    if type(value) is not kind:
        wanted = {str: "a string", bool: "true or false"}[kind]
        hint = None
        if isinstance(value, str) and value.lower() in ("true", "false"):
            hint = f"without quotes: {value.lower()}"
        elif kind is str and isinstance(value, bool | int | float):
            hint = f'in quotes: "{str(value).lower() if isinstance(value, bool) else value}"'
        what = f"{entry.name} must be {wanted}, not {kind_of(value)}"
        raise EnvironmentFileError(what, hint, entry.locate())
    if isinstance(value, str) and "\0" in value:
        raise EnvironmentFileError(f"{entry.name} holds a NUL byte", None, entry.locate())
    return entry


def kind_of(value: Any) -> str:
    """Return what messages call the kind of `value`."""
    if isinstance(value, bool):
        return "true or false"
    names = {str: "a string", int: "a number", float: "a number", list: "an array", dict: "a table"}
    return names.get(type(value), "a date or time")
