"""Files of variables, `env_file`: NAME=VALUE lines, as `docker run --env-file` takes them.

A line that is empty or begins with `#` says nothing; `export ` in front is left out, and quotes around a value. Nothing
is replaced in a value: no `${…}`, no backslash.
"""

from __future__ import annotations

import re

from piolet.base import places
from piolet.base.errors import EnvironmentFileError
from piolet.base.positions import Path, Positions, Span
from piolet.environment.expand import escape
from piolet.environment.layer import Entry
from piolet.environment.source import Source, text_of

_LINE = re.compile(r"[ \t]*(?:export[ \t]+)?([^=\s#][^=\s]*)=(.*?)[ \t]*$")


def read(path: str) -> tuple[Source, dict[str, Entry]]:
    """Return the file at the absolute `path` and its variables. Raises EnvironmentFileError."""
    text, stamp = text_of(path)
    values: dict[str, str] = {}
    spans: dict[Path, Span] = {}
    at = 0
    for line in text.splitlines(keepends=True):
        plain = line.rstrip("\r\n")
        start, at = at, at + len(line)
        if not plain.strip() or plain.lstrip().startswith("#"):
            continue
        match = _LINE.match(plain)
        if match is None:
            where = places.of_span(path, text, (start, start + len(plain)))
            raise EnvironmentFileError("this line is not NAME=VALUE", "a comment begins with '#'", where)
        value = match[2]
        if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
            value = value[1:-1]
        values[match[1]] = escape(value)
        spans["env", match[1]] = (start + match.start(2), start + match.end(2))
    source = Source(path, text, {"env": values}, Positions(dict(spans), spans), stamp)
    return source, {name: Entry(value, source, ("env", name)) for name, value in values.items()}
