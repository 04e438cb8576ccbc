"""Writes definition files, and changes them: comments, order and the rest of the text stay as the user wrote them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import Array

from piolet.base.errors import EnvironmentFileError
from piolet.environment import edf
from piolet.environment import request as asked
from piolet.environment.source import parse

_ORDER = (
    *("base_environment", "image", "workdir", "entrypoint", "writable", "home", "env_policy", "script"),
    "save",
    *("mounts", "devices", "env_file"),
)
_LISTS = {"mount": "mounts", "device": "devices"}


def new(data: Mapping[str, Any], comments: Sequence[str] = ()) -> str:
    """Return a file that says `data`, below these comments."""
    document: Any = tomlkit.document()
    for line in comments:
        document.add(tomlkit.comment(line))
    for key in _ORDER:
        if key in data:
            _set(document, key, data[key])
    for key in ("startup", "env", "annotations"):
        if data.get(key):
            document.add(tomlkit.nl())
            _set(document, key, data[key])
    return tomlkit.dumps(document)


def changed(path: str, text: str, words: Sequence[str], removed: Sequence[str]) -> str:
    """Return `text`, the file at `path`, with `words` (KEY=VALUE) set or added, and `removed` (KEY, env.NAME,
    mount=TEXT) taken out. Raises EnvironmentFileError: a word is wrong, or the file, before or after.
    """
    check(path, text)
    try:
        document: Any = tomlkit.parse(text)
    except TOMLKitError as error:
        raise EnvironmentFileError(f"{path} cannot be changed: {error}", "edit it by hand") from None
    for word in removed:
        _remove(document, word)
    for key, value in asked.changes(words).items():
        _set(document, key, value)
    result = tomlkit.dumps(document)
    check(path, result)
    return result


def check(path: str, text: str) -> None:
    """Raise EnvironmentFileError if this is no definition file: not TOML, unknown keys, values of a wrong type."""
    edf.read_document(parse(path, text), strict=True)


def _set(document: Any, key: str, value: Any) -> None:
    if isinstance(value, list):
        array = document.get(key)
        if not isinstance(array, Array):
            document[key] = tomlkit.array()
            array = document[key]
        for one in value:
            if one not in array:
                array.append(one)
        if len(array) > 1:
            array.multiline(True)
    elif isinstance(value, dict):
        if key not in document:
            document[key] = tomlkit.table()
        for name, text in value.items():
            _put(document[key], name, text)
    else:
        document[key] = value


def _put(table: Any, name: str, text: str) -> None:
    """Set a name that may have dots, where it is already, in nested tables or not."""
    parts = name.split(".")
    while name not in table and len(parts) > 1 and isinstance(table.get(parts[0]), dict):
        table = table[parts[0]]
        parts = parts[1:]
        name = ".".join(parts)
    table[name] = text


def _remove(document: Any, word: str) -> None:
    key, equals, text = word.partition("=")
    table, dot, name = word.partition(".")
    if equals and key in _LISTS:
        array = document.get(_LISTS[key])
        if isinstance(array, Array) and text in array:
            array.remove(text)
            if not array:
                del document[_LISTS[key]]
            return
    elif dot and table in ("env", "annotations"):
        if name in document.get(table, {}):
            del document[table][name]
            return
    elif word in document:
        del document[word]
        return
    raise EnvironmentFileError(f"there is no '{word[:80]}' to remove", "KEY, env.NAME, annotations.NAME or mount=TEXT")
