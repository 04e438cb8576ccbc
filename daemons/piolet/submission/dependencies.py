"""What a rendered definition was made from, so that the next srun can tell whether it still holds.

`Host` is the only way in which the renderer sees variables and files of the host; it notes each
question and its answer. The kinds are those of `piolet_dependency_kind` in wire.h.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from piolet.base.files import Stamp


class Kind(IntEnum):
    """The kinds of dependencies, numbered as in wire.h (a test compares them)."""

    FILE = 1
    EXISTS = 2
    ABSENT = 3
    VARIABLE = 4
    UNSET = 5
    REQUEST = 6
    NOTE = 7
    UNTIL = 8


@dataclass(frozen=True)
class Dependency:
    """One fact about the host that must still be true."""

    kind: Kind
    name: str
    value: str = ""
    stamp: Stamp | None = None


def until(what: str, at: float, end: float) -> Dependency:
    """Return that something is good from one time to another, both in seconds of the epoch."""
    return Dependency(Kind.UNTIL, what, stamp=Stamp(0, 0, 0, int(at * 1e9), int(end * 1e9)))


class Host:
    """The variables and the working directory of whoever asks, and a list of what was looked at."""

    def __init__(self, variables: Mapping[str, str], cwd: str) -> None:
        self.variables = dict(variables)
        self.cwd = cwd
        self._seen: dict[tuple[Kind, str], Dependency] = {}

    @property
    def dependencies(self) -> tuple[Dependency, ...]:
        """Everything that was looked at, in order, once."""
        return tuple(self._seen.values())

    def variable(self, name: str) -> str | None:
        """Return the variable's value, or None when it is not set."""
        value = self.variables.get(name)
        self._note(Dependency(Kind.UNSET, name) if value is None else Dependency(Kind.VARIABLE, name, value))
        return value

    def absolute(self, path: str) -> str:
        """Return `path` made absolute, without `//` and `/./`.

        A `..` at the front is taken off with the end of the working directory, which has no symbolic
        links; a later one stays, as what it means depends on symbolic links.
        """
        base = self.cwd
        if not path.startswith("/"):
            parts = [part for part in path.split("/") if part not in ("", ".")]
            while parts and parts[0] == "..":
                base, parts = os.path.dirname(base), parts[1:]
            path = "/".join([base, *parts])
        return squeeze(path)

    def file(self, path: str, stamp: Stamp) -> None:
        """Note that the file at `path` was read when it had `stamp`."""
        self._note(Dependency(Kind.FILE, path, stamp=stamp))

    def exists(self, path: str) -> None:
        """Note that `path` is there."""
        self._note(Dependency(Kind.EXISTS, path))

    def absent(self, path: str) -> None:
        """Note that `path` is not there."""
        self._note(Dependency(Kind.ABSENT, path))

    def watch(self, path: str) -> None:
        """Note the file at `path` as it is now, or that it is not there."""
        try:
            self.file(path, Stamp.of(os.stat(path)))
        except OSError:
            self.absent(path)

    def _note(self, dependency: Dependency) -> None:
        self._seen.setdefault((dependency.kind, dependency.name), dependency)


def squeeze(path: str) -> str:
    """Return the absolute `path` without empty and `.` components; `..` stays."""
    return "/" + "/".join(part for part in path.split("/") if part not in ("", "."))
