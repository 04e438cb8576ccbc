"""From what hooks and devices return to parts of a container's plan.

Pure. The server's half: what the worker does with them is in extras.py.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from piolet.api import (
    Account,
    Compatible,
    Entry,
    File,
    Files,
    Library,
    Link,
    Mount,
    Notice,
    Program,
    TaskVariable,
    Variable,
)
from piolet.base.errors import PioletError
from piolet.container.plan import TASK_FILE, PlannedFolder, PlannedMount, PlannedProgram

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NOTICE_MOST = 300


@dataclass(frozen=True)
class Additions:
    """Parts of a plan, as it has them, and variables of all tasks; `tasks`: whether the entry program is needed."""

    mounts: tuple[PlannedMount, ...] = ()
    folders: tuple[PlannedFolder, ...] = ()
    links: tuple[tuple[str, str], ...] = ()
    libraries: tuple[tuple[str, str, bool], ...] = ()
    compatible: tuple[tuple[str, str], ...] = ()
    programs: tuple[PlannedProgram, ...] = ()
    accounts: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    tasks: bool = False


def collect(
    entries: Iterable[Entry], set_env: Mapping[str, str], unset_env: Iterable[str], user: Mapping[str, str]
) -> Additions:
    """Return what entries add to a container with these variables; `user` are those of the user for programs.

    Raises PioletError: an entry names what cannot be.
    """
    mounts: dict[str, PlannedMount] = {}
    variables: dict[str, str] = {}
    links: dict[str, str] = {}
    folders: dict[PlannedFolder, None] = {}
    libraries: dict[tuple[str, str, bool], None] = {}
    compatible: dict[tuple[str, str], None] = {}
    programs: list[Program] = []
    accounts: dict[str, None] = {}
    tasks: list[str] = []
    fixed = {*set_env, *unset_env}
    for entry in entries:
        if isinstance(entry, Mount):
            flags: tuple[str, ...] = ("ro",) if entry.read_only else ()
            place = _path(entry.destination)
            mounts[place] = PlannedMount(_path(entry.source), place, flags=flags, optional=entry.optional, file=True)
        elif isinstance(entry, Files):
            folders[PlannedFolder(_path(entry.source), _path(entry.destination), *_names(entry))] = None
        elif isinstance(entry, File):
            place = _path(entry.path)
            flags = ("ro", "x") if entry.executable else ("ro",)
            mounts[place] = PlannedMount("", place, "text", flags, file=True, content=_text(entry.content))
        elif isinstance(entry, Variable):
            if entry.override or entry.name not in fixed:
                variables[_name(entry.name)] = _text(entry.value)
        elif isinstance(entry, TaskVariable):
            kind = {(False, False): "?", (True, False): "=", (False, True): "~", (True, True): "^"}
            mark = kind[entry.override, entry.first_host]
            tasks.append(f"{mark}{_name(entry.name)}={_name(entry.of)}")
        elif isinstance(entry, Link):
            links[_path(entry.path)] = _text(entry.target)
        elif isinstance(entry, Library):
            libraries[_text(entry.soname), _path(entry.path), bool(entry.last)] = None
        elif isinstance(entry, Compatible):
            compatible[_path(entry.directory), _text(entry.version)] = None
        elif isinstance(entry, Program):
            programs.append(entry)
        elif isinstance(entry, Account):
            accounts[_text(entry.name)] = None
        elif isinstance(entry, Notice):
            text = "".join(one if one.isprintable() else " " for one in entry.text)
            tasks.append("!" + " ".join(text.split())[:_NOTICE_MOST])
    if tasks:
        content = "".join(f"{line}\0" for line in tasks)
        mounts[TASK_FILE] = PlannedMount("", TASK_FILE, "text", ("ro",), file=True, content=content)
    environment = {"PATH": _PATH, **set_env, **variables, **user}
    return Additions(
        tuple(mounts.values()),
        tuple(folders),
        tuple(links.items()),
        tuple(libraries),
        tuple(compatible),
        tuple(_program(program, environment) for program in programs),
        tuple(accounts),
        variables,
        bool(tasks),
    )


def _program(program: Program, environment: Mapping[str, str]) -> PlannedProgram:
    if not program.words:
        raise PioletError("a hook has a program without words")
    _path(program.words[0])
    every = {**environment, **program.variables}
    return PlannedProgram(
        tuple(map(_text, program.words)),
        float(program.wait_s),
        tuple(f"{_name(name)}={_text(value)}" for name, value in every.items()),
        _text(program.failure),
    )


@functools.lru_cache(64)
def _names(files: Files) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...], tuple[str, ...]]:
    """Return names and links, looked at once: those of a driver are the same for each step. Raises PioletError."""
    for name in (*files.names, *(name for name, _ in files.links), *files.found):
        if not _text(name) or "/" in name or name in (".", ".."):
            raise PioletError(f"a hook names a file '{name[:80]}', which is not a name")
    return files.names, tuple((name, _text(target)) for name, target in files.links), files.found


def _text(text: str) -> str:
    if not isinstance(text, str) or "\0" in text:
        raise PioletError("a hook has an entry that is not text")
    return text


def _name(name: str) -> str:
    if not _text(name) or "=" in name:
        raise PioletError(f"a hook sets a variable with the impossible name '{name[:80]}'")
    return name


def _path(path: str) -> str:
    if not _text(path).startswith("/") or ".." in path.split("/") or not path.strip("/"):
        raise PioletError(f"a hook names the path '{path[:200]}', which is not an absolute one")
    return path
