"""The contract of hooks: what else a container gets, by a pure function of the definition, the node and the step.

A hook returns entries of the container's plan. It opens, starts and asks nothing itself: what it has to know of the
node it names in `looks`, and pioletd looks once. What its entries name is used as the job's user.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Union


class Missing(Exception):  # noqa: N818 - it is no error where the hook is not required: the user is warned
    """Raised by a hook that cannot do here what it is for; the text says what is not there, `hint` what helps."""

    def __init__(self, text: str, hint: str = "") -> None:
        super().__init__(text)
        self.hint = hint


class Refused(Exception):  # noqa: N818 - the user's mistake
    """Raised by a hook for options that cannot be meant: shown when the job is submitted."""

    def __init__(self, text: str, hint: str = "") -> None:
        super().__init__(text)
        self.hint = hint


@dataclass(frozen=True)
class Mount:
    """A path of the node in the container. An `optional` one is left out where its source is not there."""

    source: str
    destination: str
    read_only: bool = True
    optional: bool = False


@dataclass(frozen=True)
class Files:
    """Files of one directory of the node in one of the container, read-only: for many of them quicker than mounts.

    source, destination   the directories
    names                 of the files
    links                 names and targets of symbolic links that are made beside them
    found                 which of these names are libraries that the dynamic loader finds
    """

    source: str
    destination: str
    names: tuple[str, ...]
    links: tuple[tuple[str, str], ...] = ()
    found: tuple[str, ...] = ()


@dataclass(frozen=True)
class File:
    """A file of the container with this content; read-only, and in memory."""

    path: str
    content: str
    executable: bool = False


@dataclass(frozen=True)
class Link:
    """A symbolic link in the container, instead of a link or a file of the image."""

    path: str
    target: str


@dataclass(frozen=True)
class Variable:
    """A variable of every task. One that the definition sets stays as it is, but with `override`."""

    name: str
    value: str
    override: bool = False


@dataclass(frozen=True)
class TaskVariable:
    """A variable that each task has from another one of its own, `of`; `first_host`: the first name of that host list.

    With `override` it is set whatever was there before; without, where there is none.
    """

    name: str
    of: str
    first_host: bool = False
    override: bool = False


@dataclass(frozen=True)
class Library:
    """A shared library that programs of the container find by its name, `soname`, at `path`.

    It comes before the image's own of that name, but with `last`.
    """

    soname: str
    path: str
    last: bool = False


@dataclass(frozen=True)
class Compatible:
    """The image's own CUDA libraries in `directory` are found first, if they are of a newer driver than `version`."""

    directory: str
    version: str


@dataclass(frozen=True)
class Program:
    """A program of the container, run as the user in the step's control groups.

    words      an absolute path, and arguments
    wait_s     it ends by itself, and tasks wait so many seconds for that; 0: it runs until the step ends
    variables  besides PATH, HOME, USER, and the container's
    failure    what the step is told if it fails, besides how
    """

    words: tuple[str, ...]
    wait_s: float = 0.0
    variables: Mapping[str, str] = field(default_factory=dict)
    failure: str = ""


@dataclass(frozen=True)
class Account:
    """An account of the node, by its name, in the container's /etc/passwd, unless the image has one so called."""

    name: str


@dataclass(frozen=True)
class Notice:
    """A warning, which the first task of the step prints."""

    text: str


Entry = Union[Mount, Files, File, Link, Variable, TaskVariable, Library, Compatible, Program, Account, Notice]  # noqa: UP007 - it is evaluated, in 3.8 too


@dataclass(frozen=True)
class Asked:
    """What the definition says.

    options      of this hook, without `enabled` and `required`
    site         the site's options of this hook: [hooks] options in piolet.toml
    environment  variables of the image and of [env]
    annotations  all of the definition's
    """

    options: Mapping[str, str] = field(default_factory=dict)
    site: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Shared:
    """A shared library of the node: the name that programs ask for, and its path, links followed."""

    soname: str
    path: str


@dataclass(frozen=True)
class Node:
    """What the node has.

    name     its host name
    machine  'x86_64', 'aarch64', …
    found    the paths that each pattern of `looks` has found, links not followed, sorted
    needed   the shared libraries of what each pattern of `links` has found, and of what these need in turn
    """

    name: str = ""
    machine: str = ""
    found: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    needed: Mapping[str, tuple[Shared, ...]] = field(default_factory=dict)

    def paths(self, pattern: str) -> tuple[str, ...]:
        """Return what a pattern has found; nothing for one that was not looked for."""
        return self.found.get(pattern, ())

    def first(self, *patterns: str) -> str:
        """Return the first path that one of these patterns has found, or ''."""
        return next((path for pattern in patterns for path in self.paths(pattern)), "")


@dataclass(frozen=True)
class Step:
    """Whose step it is."""

    job: int = 0
    step: int = 0
    uid: int = -1
    gid: int = -1
    user: str = ""
    home: str = ""


class Hook:
    """The base class of hooks.

    name        the short name: com.hooks.NAME.enabled switches it on
    text        what it does, one line
    source      where the facts about what it mounts and sets come from
    hardware    what it needs and was not tested with, or ''
    always      it is on unless switched off
    implies     other hooks that are on with it
    reads       other hooks whose options of the site it has, too
    options     its options, and what each means
    settings    the site's options of it, and what each means
    looks       patterns of paths (as in glob) that it has to know of
    links       patterns of programs and libraries whose own shared libraries it has to know; they are looked for, too
    """

    name: ClassVar[str] = ""
    text: ClassVar[str] = ""
    source: ClassVar[str] = ""
    hardware: ClassVar[str] = ""
    always: ClassVar[bool] = False
    implies: ClassVar[tuple[str, ...]] = ()
    reads: ClassVar[tuple[str, ...]] = ()
    options: ClassVar[dict[str, str]] = {}
    settings: ClassVar[dict[str, str]] = {}
    looks: ClassVar[tuple[str, ...]] = ()
    links: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def where(cls, site: Mapping[str, str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return `looks` and `links` for the site's options of this hook."""
        return cls.looks, cls.links

    def check(self, asked: Asked) -> None:
        """Look at the options when a job is submitted. Raises Refused."""

    def entries(self, asked: Asked, node: Node, step: Step) -> Iterable[Entry]:
        """Return what the container gets. Raises Missing."""
        raise NotImplementedError
