"""What stands after `--environment=`: a file, or an image, and what is to be otherwise for this once.

    FILE                          a file or a name (lookup.py)
    -                             a definition on standard input
    image:REFERENCE               an image alone
    …,KEY=VALUE,…                 on top of each: KEY is image, mount, workdir, env (NAME=VALUE), device, …

Pure, but for standard input.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from typing import Any

from piolet.base import places
from piolet.base.errors import EnvironmentFileError
from piolet.base.nearest import nearest
from piolet.base.positions import Path, Positions, Span
from piolet.environment.source import SIZE_LIMIT, Source, parse

STANDARD_INPUT = "/dev/stdin"
_IMAGE = "image:"
WHERE = "--environment"
_KEY = re.compile(r",(?=([a-z_]+)=)")
# What may be said more than once, and its key in a file.
_LISTS = {"mount": "mounts", "device": "devices"}
_PAIRS = {"env": "env", "annotation": "annotations"}
_BOOLEANS = ("entrypoint", "writable", "home", "remap_root")
_TEXTS = ("image", "workdir", "env_policy", "script", "save")
OVERRIDES = (*_TEXTS, *_LISTS, *_PAIRS, *_BOOLEANS)


def split(request: str, cwd: str) -> tuple[str, Source | None]:
    """Return what a request names ('' if it is an image alone), and what it says on top, as a file would.

    `cwd` is the directory of who asks. Raises EnvironmentFileError.
    """
    matches = [] if os.path.exists(os.path.join(cwd, request)) else list(_KEY.finditer(request))
    name = request[: matches[0].start()] if matches else request
    data: dict[str, Any] = {}
    values: dict[Path, Span] = {}
    if name.startswith(_IMAGE):
        data["image"], values["image",] = name[len(_IMAGE) :], (len(_IMAGE), len(name))
        name = ""
    ends = [match.start() for match in matches[1:]] + [len(request)]
    for match, end in zip(matches, ends, strict=False):
        start = match.end() + len(match[1]) + 1
        _put(request, match[1], (match.end(), start - 1), (start, end), data, values)
    if not data:
        return name, None
    return name, Source(WHERE, request, data, Positions(dict(values), values), None, cwd)


def changes(words: Sequence[str]) -> dict[str, Any]:
    """Return what `words`, KEY=VALUE each, say, as the data of a file. Raises EnvironmentFileError."""
    data: dict[str, Any] = {}
    for word in words:
        key, equals, _ = word.partition("=")
        if not equals:
            raise EnvironmentFileError(f"'{word[:80]}' is not KEY=VALUE", f"the keys are {', '.join(OVERRIDES)}")
        try:
            _put(word, key, (0, len(key)), (len(key) + 1, len(word)), data, {})
        except EnvironmentFileError as error:
            raise EnvironmentFileError(f"{error.message}, in '{word[:80]}'", error.hint) from None
    return data


def _put(request: str, key: str, at: Span, span: Span, data: dict[str, Any], values: dict[Path, Span]) -> None:
    value = request[span[0] : span[1]]
    path: Path = (key,)
    if key in _LISTS:
        listing = data.setdefault(_LISTS[key], [])
        path = (_LISTS[key], len(listing))
        listing.append(value)
    elif key in _PAIRS:
        name, equals, text = value.partition("=")
        if not equals:
            raise _error(request, span, f"'{value[:80]}' is not NAME=VALUE", f"as in {key}=NAME=VALUE")
        path = (_PAIRS[key], name)
        data.setdefault(_PAIRS[key], {})[name] = text
    elif key in _BOOLEANS and value in ("true", "false"):
        data[key] = value == "true"
    elif key in _BOOLEANS:
        raise _error(request, span, f"{key} must be true or false, not '{value[:80]}'", None)
    elif key in _TEXTS:
        data[key] = value
    else:
        near = nearest(key, OVERRIDES)
        hint = f"did you mean '{near}'?" if near else f"the keys are {', '.join(OVERRIDES)}"
        raise _error(request, at, f"unknown key '{key[:80]}'", hint)
    values[path] = span


def _error(request: str, span: Span, message: str, hint: str | None) -> EnvironmentFileError:
    return EnvironmentFileError(message, hint, places.of_span(WHERE, request, span))


def standard_input(cwd: str) -> Source:
    """Return the definition on standard input, parsed; `cwd` is what `${EDF_DIR}` means there."""
    if sys.stdin is None or sys.stdin.isatty():
        raise EnvironmentFileError(
            "'-' is a definition on standard input, and that is a terminal",
            "give it there, as in srun --environment=- … < x.toml",
        )
    data = sys.stdin.buffer.read(SIZE_LIMIT + 1)
    if len(data) > SIZE_LIMIT:
        raise EnvironmentFileError(f"the definition on standard input is longer than {SIZE_LIMIT} bytes")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise EnvironmentFileError("the definition on standard input is not UTF-8") from None
    return parse(STANDARD_INPUT, text, folder=cwd)
