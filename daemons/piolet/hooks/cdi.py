"""Devices by the Container Device Interface: what a specification says becomes entries of our own plan.

Pure. A specification names programs to run as root while a container is made ("hooks"). None is run: of those that
nvidia-ctk writes, each becomes entries that do the same, or nothing where there is nothing to do; any other is an error
that names it. Sources: the CDI specification (cncf-tags/container-device-interface, SPEC.md, 1.0) and the README of
nvidia-cdi-hook (NVIDIA/nvidia-container-toolkit, 1.18), read 2026-11-29.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from piolet.api import Compatible, Entry, Files, Library, Link, Mount, Variable
from piolet.base.errors import PioletError

_KIND = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*")
_MANY = 4
_COMPATIBLE = "/usr/local/cuda/compat"
# They keep NVML from making device nodes, and EGL from seeing other GPUs. In a user namespace no device node can be
# made, and which GPUs a step has is its control group's to say.
_NEEDLESS = ("disable-device-node-modification", "update-application-profile")
# Of edits: what changes nothing here. A user's groups are theirs, and Slurm's to give.
_LEFT = ("additionalGids",)

Soname = Callable[[str], str]


class SpecError(PioletError):
    """A specification that cannot be carried out."""


@dataclass(frozen=True)
class Devices:
    """The devices of a node by their full name ('nvidia.com/gpu=all'): entries, and the file that defines each.

    broken  what is wrong with files that define a kind of devices, by that kind, or by the file
    """

    entries: Mapping[str, tuple[Entry, ...]] = field(default_factory=dict)
    origin: Mapping[str, str] = field(default_factory=dict)
    broken: Mapping[str, str] = field(default_factory=dict)

    def of(self, names: Iterable[str]) -> list[Entry]:
        """Return the entries of these devices, each once. Raises SpecError: there is none of a name."""
        found: dict[Entry, None] = {}
        for name in names:
            if name not in self.entries:
                kind = name.partition("=")[0]
                why = self.broken.get(kind)
                if why:
                    raise SpecError(f"the device {name} cannot be given: {why}")
                there = ", ".join(sorted(self.entries)) or "none"
                raise SpecError(f"there is no device {name}", f"devices here: {there[:500]}")
            found.update(dict.fromkeys(self.entries[name]))
        return list(found)


def compile_spec(spec: Any, soname: Soname) -> dict[str, tuple[Entry, ...]]:
    """Return the entries of each device of a specification, by its full name.

    soname  returns what a library of the node calls itself, or ''

    Raises SpecError.
    """
    kind = _table(spec, "the specification").get("kind")
    if not isinstance(kind, str) or not _KIND.fullmatch(kind):
        raise SpecError("it has no kind of the form vendor.com/class")
    common = _table(spec.get("containerEdits") or {}, "containerEdits")
    result = {}
    for device in _list(spec.get("devices") or [], "devices"):
        name = _text(_table(device, "a device").get("name"), "the name of a device")
        own = _table(device.get("containerEdits") or {}, "containerEdits")
        result[f"{kind}={name}"] = _edits([own, common], soname)
    return result


def _edits(every: list[dict[str, Any]], soname: Soname) -> tuple[Entry, ...]:
    entries: list[Entry] = []
    mounts: list[Mount] = []
    hooks: list[tuple[str, list[str]]] = []
    for edits in every:
        for name in edits:
            if name not in ("env", "deviceNodes", "mounts", "hooks", *_LEFT):
                raise SpecError(f"it asks for {name}, which is not supported")
        for text in _list(edits.get("env") or [], "env"):
            name, equals, value = _text(text, "a variable").partition("=")
            if not name or not equals:
                raise SpecError(f"its variable '{text[:80]}' is not NAME=VALUE")
            entries.append(Variable(name, value))
        for node in _list(edits.get("deviceNodes") or [], "deviceNodes"):
            path = _path(_table(node, "a device node").get("path"))
            source = _path(node.get("hostPath") or path)
            # The host's /dev is in every container: a node at its own place is there already.
            if source != path or not path.startswith("/dev/"):
                mounts.append(Mount(source, path, read_only=False))
        for mount in _list(edits.get("mounts") or [], "mounts"):
            mounts.append(_mount(_table(mount, "a mount")))
        for hook in _list(edits.get("hooks") or [], "hooks"):
            words = [
                _text(word, "a word of a hook") for word in _list(_table(hook, "a hook").get("args") or [], "args")
            ]
            hooks.append((_text(hook.get("path"), "the path of a hook"), words))
    links: list[Entry] = []
    folders: list[str] = []
    for path, words in hooks:
        links += _hook(path, words, folders)
    return _grouped([*mounts, *entries, *links, *_found(mounts, links, folders, soname)])


def _grouped(entries: list[Entry]) -> tuple[Entry, ...]:
    """Return the entries, but files of one directory together where there are many, with what belongs to them."""
    pairs = Counter(pair for entry in entries if (pair := _pair(entry)) is not None)
    many = {pair for pair, count in pairs.items() if count >= _MANY}
    by_place: dict[str, tuple[str, str]] = {}
    for source, destination in sorted(many):
        by_place.setdefault(destination, (source, destination))
    names: dict[tuple[str, str], list[str]] = {pair: [] for pair in many}
    links: dict[tuple[str, str], list[tuple[str, str]]] = {pair: [] for pair in many}
    found: dict[tuple[str, str], list[str]] = {pair: [] for pair in many}
    rest: list[Entry] = []
    for entry in entries:
        pair = _pair(entry)
        if isinstance(entry, Mount) and pair in many and pair is not None:
            names[pair].append(os.path.basename(entry.destination))
        elif isinstance(entry, Link) and (place := by_place.get(os.path.dirname(entry.path))):
            links[place].append((os.path.basename(entry.path), entry.target))
        elif isinstance(entry, Library) and by_place.get(os.path.dirname(entry.path)) and _own(entry):
            found[by_place[os.path.dirname(entry.path)]].append(entry.soname)
        else:
            rest.append(entry)
    groups = [Files(*pair, tuple(names[pair]), tuple(links[pair]), tuple(found[pair])) for pair in sorted(many)]
    return (*groups, *rest)


def _pair(entry: Entry) -> tuple[str, str] | None:
    """Return the two directories of a mount that can be one of many."""
    if not isinstance(entry, Mount) or not entry.read_only or entry.optional:
        return None
    (source, name), (destination, own) = os.path.split(entry.source), os.path.split(entry.destination)
    return (source, destination) if name == own else None


def _own(library: Library) -> bool:
    return os.path.basename(library.path) == library.soname and not library.last


def _mount(mount: dict[str, Any]) -> Mount:
    kind = mount.get("type") or "bind"
    if kind not in ("bind", "none"):
        raise SpecError(f"it asks for a mount of the type {kind}, which is not supported")
    options = _list(mount.get("options") or [], "options")
    return Mount(_path(mount.get("hostPath")), _path(mount.get("containerPath")), read_only="ro" in options)


def _hook(path: str, words: list[str], folders: list[str]) -> list[Entry]:
    """Return what a hook would have done; folders of libraries are added to `folders`."""
    rest = words[1:]
    if rest[:1] == ["hook"]:  # nvidia-ctk hook NAME, by newer ones nvidia-cdi-hook NAME
        rest = rest[1:]
    action, options = (rest[0], rest[1:]) if rest else ("", [])
    known = os.path.basename(path) in ("nvidia-ctk", "nvidia-cdi-hook")
    if not known or action not in ("create-symlinks", "update-ldcache", "enable-cuda-compat", "chmod", *_NEEDLESS):
        line = " ".join([path, *words[1:]])[:300]
        raise SpecError(f"its hook '{line}' is not one that can be replaced, and none is run")
    if action in _NEEDLESS:
        return []
    given = _options(options)
    if action == "create-symlinks":
        links = [text.partition("::") for text in given.get("link", [])]
        if any(not middle for _, middle, _ in links):
            raise SpecError("its hook create-symlinks has a link that is not TARGET::PATH")
        return [Link(_path(link), target) for target, _, link in links]
    if action == "update-ldcache":
        folders += [_path(folder) for folder in given.get("folder", [])]
        return []
    if action == "chmod":
        other = [one for one in given.get("path", []) if not one.startswith("/dev/")]
        if other:
            raise SpecError(f"its hook chmod is for {other[0]}, which is no device")
        return []  # the host's /dev has its modes
    return [Compatible(_COMPATIBLE, version) for version in given.get("host-driver-version", [])]


def _options(words: list[str]) -> dict[str, list[str]]:
    """Return `--name value` and `--name=value` by name."""
    found: dict[str, list[str]] = {}
    rest = iter(words)
    for word in rest:
        if not word.startswith("--"):
            raise SpecError(f"one of its hooks has the unexpected word '{word[:100]}'")
        name, equals, value = word[2:].partition("=")
        found.setdefault(name, []).append(value if equals else next(rest, ""))
    return found


def _found(mounts: list[Mount], links: list[Entry], folders: list[str], soname: Soname) -> list[Entry]:
    """Return what ldconfig would do in these folders: links by the libraries' own names, and that they are found."""
    made = {link.path for link in links if isinstance(link, Link)} | {mount.destination for mount in mounts}
    result: list[Entry] = []
    for mount in mounts:
        folder, name = os.path.split(mount.destination)
        if folder not in folders or ".so" not in name:
            continue
        own = soname(mount.source)
        if not own or "/" in own:
            continue
        result.append(Library(own, f"{folder}/{own}"))
        if f"{folder}/{own}" not in made:
            made.add(f"{folder}/{own}")
            result.append(Link(f"{folder}/{own}", name))
    known = {library.path for library in result if isinstance(library, Library)}
    for link in links:
        if isinstance(link, Link) and os.path.dirname(link.path) in folders and link.path not in known:
            name = os.path.basename(link.path)
            if name.startswith("lib") and ".so" in name:
                result.append(Library(name, link.path))
    return result


def _table(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SpecError(f"{what} is not a table")
    return value


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise SpecError(f"its {what} is not a list")
    return value


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise SpecError(f"{what} is not a text")
    return value


def _path(value: Any) -> str:
    path = _text(value, "a path")
    if not path.startswith("/") or ".." in path.split("/"):
        raise SpecError(f"it has the path '{path[:200]}', which is not absolute")
    return os.path.normpath(path)
