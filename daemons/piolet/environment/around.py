"""What a definition has done before a step's tasks, `[startup]`, and after them, `save`.

The keys of the table are `commands`, a string or an array of them, `per` and `timeout`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from piolet.base import units
from piolet.base.errors import EnvironmentFileError, ImageError, Location
from piolet.base.nearest import nearest
from piolet.environment import later
from piolet.environment.definition import Definition, Save, Startup
from piolet.environment.expand import ExpandError, expand
from piolet.environment.layer import Entry, Layer
from piolet.environment.problems import Problems
from piolet.environment.settings import EnvironmentConfig
from piolet.environment.source import Source
from piolet.environment.values import kind_of, scalar
from piolet.images.info import ImageInfo
from piolet.images.reference import is_path, parse
from piolet.submission.dependencies import Host

TABLE = "startup"
KEYS = ("commands", "per", "timeout")
NODE, JOB = "node", "job"
TIMEOUT_S, TIMEOUT_MOST_S = 600.0, 86400.0
COMMANDS_MOST = 100
_OTHERS = {
    **dict.fromkeys(("command", "run", "script", "cmd", "exec"), "here it is 'commands', a string or an array of them"),
    **dict.fromkeys(("deadline", "limit", "time"), "here it is 'timeout', as in timeout = \"5min\""),
    **dict.fromkeys(("once", "scope"), 'here it is \'per\': "node" or "job"'),
}
# The shell has these in the step.
_SHELLS = {name: f"${{{name}}}" for name in later.NAMES}


def read(source: Source, table: dict[str, Any], problems: Problems) -> dict[str, tuple[Entry, ...]]:
    """Return the entries of a file's table by key; `problems` gets what is wrong with it."""
    found: dict[str, tuple[Entry, ...]] = {}
    for key, value in table.items():
        with problems.gather():
            if key not in KEYS:
                near = nearest(key, KEYS)
                hint = _OTHERS.get(key.lower()) or (f"did you mean '{near}'?" if near else None)
                raise EnvironmentFileError(
                    f"unknown key '{key[:80]}' in [{TABLE}]",
                    hint or f"the keys are {', '.join(KEYS)}",
                    source.locate((TABLE, key), key=True),
                )
            if key == "commands" and isinstance(value, list):
                found[key] = tuple(scalar(source, (TABLE, key, at), str, one) for at, one in enumerate(value))
            elif key == "commands" and not isinstance(value, str):
                what = f"commands must be a string or an array of strings, not {kind_of(value)}"
                raise EnvironmentFileError(what, None, source.locate((TABLE, key)))
            else:
                found[key] = (scalar(source, (TABLE, key), str, value),)
    return found


def startup(layer: Layer, host: Host, info: ImageInfo | None, problems: Problems) -> Startup | None:
    """Return what is to be done before the tasks, or None."""
    per, timeout = NODE, TIMEOUT_S
    for key, entries in layer.startup.items():
        with problems.gather(), _placed(entries[0].locate() if entries else None):
            if key == "per":
                per = _text(entries[0], host)
                if per not in (NODE, JOB):
                    raise EnvironmentFileError(f"per must be '{NODE}' or '{JOB}', not '{per[:40]}'")
            elif key == "timeout":
                text = _text(entries[0], host)
                seconds = units.seconds_of(text)
                if seconds is None or not 0 < seconds <= TIMEOUT_MOST_S:
                    what = f"timeout must be a time of up to a day, not '{text[:40]}'"
                    raise EnvironmentFileError(what, 'write a number and s, min or h: timeout = "5min"')
                timeout = seconds
    commands = []
    for entry in layer.startup.get("commands", ()):
        with problems.gather():
            text = _text(entry, host)
            if text.strip():
                commands.append(text)
    if not commands:
        return None
    first = layer.startup["commands"][0].locate()
    with problems.gather():
        if info is None and "image" not in layer.scalars:  # one that cannot be had is told already
            what = f"[{TABLE}] needs an image, and there is none"
            raise EnvironmentFileError(what, "without one the step runs on the host, and only env applies", first)
        if len(commands) > COMMANDS_MOST:
            what = f"[{TABLE}] has {len(commands)} commands, more than the limit of {COMMANDS_MOST}"
            raise EnvironmentFileError(what, "put them into a script, and name that", first)
    return Startup(tuple(commands), per, timeout)


def save(
    layer: Layer, host: Host, info: ImageInfo | None, config: EnvironmentConfig, problems: Problems
) -> Save | None:
    """Return what the container is saved as when the tasks have ended, or None."""
    entry, writable = layer.scalars.get("save"), layer.scalars.get("writable")
    with problems.gather(), _placed(entry.locate() if entry else None):
        text = _text(entry, host, dict(later.MARKS)) if entry else ""
        if not text:
            return None
        if info is None and "image" in layer.scalars:
            return None  # it cannot be had, which is told already
        if info is None:
            what = "there is nothing to save without an image"
            raise EnvironmentFileError(what, "without one the step runs on the host, and only env applies")
        if writable is not None and not writable.value:
            what = "there is nothing to save where nothing can be written: writable is false"
            raise EnvironmentFileError(what, "leave out save, or set writable = true")
        base = {"env": info.env, "entrypoint": info.entrypoint, "workdir": info.workdir, "labels": info.labels}
        if is_path(text):
            path = host.absolute(text)
            check_file(path, host, config)
            return Save(file=path, **base)  # type: ignore[arg-type]
        return Save(name=check_name(text), store=host.variable("EDF_IMAGESTORE") or "", **base)  # type: ignore[arg-type]
    return None


def check_name(name: str) -> str:
    """Return the NAME[:TAG] of an image that is filed below localhost/. Raises ImageError: it is none."""
    bare = name.removeprefix("localhost/")
    if parse(f"localhost/{bare}").digest is not None:
        raise ImageError(f"'{name[:200]}' cannot name an image that is saved: it has a digest")
    return bare


def check_file(path: str, host: Host, config: EnvironmentConfig) -> None:
    """Raise EnvironmentFileError if no file can come to be there, as far as it is known yet."""
    if not path.endswith((".sqsh", ".squashfs")):
        raise EnvironmentFileError(f"{path[:200]}, where the container is to be saved, does not end in .sqsh")
    if later.is_the_nodes(path, (), config.node_local):
        return
    if os.path.lexists(path):
        raise EnvironmentFileError(f"{path}, where the container is to be saved, is there already", "name another file")
    host.absent(path)
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        raise EnvironmentFileError(f"the directory {folder}, where the container is to be saved, does not exist")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise EnvironmentFileError(f"the directory {folder}, where the container is to be saved, is closed to you")


def described(definition: Definition) -> tuple[list[str], list[tuple[str, Any]]]:
    """Return how a definition file says the same: lines for `save`, and keys and values of the table."""
    done, kept = definition.startup, definition.save
    keys: list[tuple[str, Any]] = []
    if done is not None:
        keys = [("commands", list(done.commands)), ("per", done.per), ("timeout", f"{done.timeout_s:g}s")]
    return ([kept.file or kept.name] if kept is not None else []), keys


def _text(entry: Entry, host: Host, own: dict[str, str] | None = None) -> str:
    """Return the entry's text expanded; of a variable that the shell may know better, a hint says how."""
    own = {"EDF_DIR": entry.source.directory, **(_SHELLS if own is None else own)}
    try:
        result = expand(entry.text, {**host.variables, **own} if "${" in entry.text else {})
    except ExpandError as error:
        where = entry.locate(fragment=error.fragment)
        hint = f"{error.hint}; " if error.hint else ""
        hint += "what the shell is to replace is written $NAME or $${NAME}" if entry.path[0] == TABLE else ""
        raise EnvironmentFileError(f"{error.message}, in {entry.name}", hint or None, where) from None
    for name in result.names:
        if name not in own:
            host.variable(name)
    return result.text


@contextmanager
def _placed(where: Location | None) -> Iterator[None]:
    try:
        yield
    except (EnvironmentFileError, ImageError) as error:
        if error.location is None:
            error.location = where
        raise
