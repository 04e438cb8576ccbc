"""What hooks have to know of the node, and its devices: looked at once, in a thread, and again after a while.

It reads what is root's: programs and libraries, their cache, and CDI specifications. Nothing of a user's is opened, and
nothing is run.
"""

from __future__ import annotations

import glob
import json
import logging
import os
import platform
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from piolet.api import Node, Shared
from piolet.hooks import cdi, nvidia, trusted
from piolet.hooks.settings import HooksConfig
from piolet.system import elf, ldcache

_log = logging.getLogger("pioletd")

_SPEC_MAX = 4 << 20
_LIBRARIES_MAX = 4096
_CACHE = "/etc/ld.so.cache"
# With an image's own of these, those of the node cannot run, nor the other way about: hooks that need them run the
# node's programs by the node's own loader.
_DEFAULTS = ("/lib64", "/usr/lib64", "/lib", "/usr/lib")


@dataclass(frozen=True)
class Facts:
    """What was found. `looks` and `links` are the patterns that were looked for."""

    node: Node = field(default_factory=Node)
    devices: cdi.Devices = field(default_factory=cdi.Devices)
    looks: frozenset[str] = frozenset()
    links: frozenset[str] = frozenset()

    def cover(self, looks: Iterable[str], links: Iterable[str]) -> bool:
        """Return whether these patterns were looked for."""
        return self.looks.issuperset(looks) and self.links.issuperset(links)


def look(looks: Iterable[str], links: Iterable[str], config: HooksConfig) -> Facts:
    """Return what the node has of these patterns, and its devices."""
    links = frozenset(links)
    looks = frozenset(looks) | links
    found = {pattern: tuple(sorted(glob.glob(pattern))) for pattern in looks}
    machine = platform.machine()
    known = _known_libraries(machine) if links else {}
    needed = {pattern: tuple(_closure(found[pattern], known, machine)) for pattern in links}
    node = Node(socket.gethostname().partition(".")[0], machine, found, needed)
    return Facts(node, devices(config), looks, links)


def _known_libraries(machine: str) -> dict[str, str]:
    try:
        with open(_CACHE, "rb") as file:
            pairs = list(ldcache.libraries(file.read(ldcache.LIMIT), machine))
    except (OSError, ldcache.MalformedError) as error:
        _log.warning("the cache of the dynamic loader cannot be used: %s", error)
        return {}
    return dict(reversed(pairs))  # the first of a name is the one that is taken


def _closure(paths: Iterable[str], known: dict[str, str], machine: str) -> list[Shared]:
    """Return the libraries that these files need, and those that they need, by the order in which they are found."""
    found: dict[str, Shared] = {}
    left = list(paths)
    while left and len(found) < _LIBRARIES_MAX:
        path = os.path.realpath(left.pop())
        try:
            dynamic = elf.read(path)
        except OSError:
            continue
        if dynamic is None or dynamic.machine != machine:
            continue
        search = [place.replace("$ORIGIN", os.path.dirname(path)) for place in dynamic.path]
        for name in dynamic.needed:
            if name in found or "/" in name:
                continue
            places = [f"{place}/{name}" for place in search]
            places += [known[name]] if name in known else [f"{place}/{name}" for place in _DEFAULTS]
            where = next((place for place in places if os.path.exists(place)), None)
            if where is not None:
                found[name] = Shared(name, os.path.realpath(where))
                left.append(where)
    return list(found.values())


def devices(config: HooksConfig) -> cdi.Devices:
    """Return the devices of this node, by the specifications that are there, and NVIDIA's without one."""
    entries: dict[str, Any] = {}
    origin: dict[str, str] = {}
    broken: dict[str, str] = {}
    for path in _specs(config.cdi):
        kind = ""
        try:
            why = trusted.doubt(path)
            if why:
                raise cdi.SpecError(why)
            spec = _read(path)
            kind = spec.get("kind", "") if isinstance(spec, dict) else ""
            for name, of in cdi.compile_spec(spec, _soname).items():
                entries[name], origin[name] = of, path
        except (cdi.SpecError, OSError, ValueError, RecursionError) as error:
            text = error.message if isinstance(error, cdi.SpecError) else str(error).splitlines()[0][:200]
            broken[kind if isinstance(kind, str) and kind else path] = f"{path}: {text}"
            _log.warning("devices of %s are not to be had: %s", path, text)
    if nvidia.KIND not in {name.partition("=")[0] for name in [*entries, *broken]}:
        spec = nvidia.make(config.driver_root)
        made = {} if spec is None else cdi.compile_spec(spec, _soname)
        entries.update(made)
        origin.update(dict.fromkeys(made, "the driver's own files"))
    return cdi.Devices(entries, origin, broken)


def _specs(directories: Iterable[str]) -> list[str]:
    paths = []
    for directory in directories:
        try:
            names = sorted(os.listdir(directory))
        except OSError:
            continue
        paths += [os.path.join(directory, name) for name in names if name.endswith((".json", ".yaml", ".yml"))]
    return paths


def _read(path: str) -> Any:
    """Return what a specification says. Raises OSError and ValueError."""
    with open(path, "rb") as file:
        data = file.read(_SPEC_MAX + 1)
    if len(data) > _SPEC_MAX:
        raise ValueError(f"it is longer than {_SPEC_MAX} bytes")
    if path.endswith(".json"):
        return json.loads(data)
    from piolet.hooks import plainyaml  # only a node with such a file loads it

    return plainyaml.parse(data)


def _soname(path: str) -> str:
    try:
        dynamic = elf.read(path)
    except OSError:
        return ""
    return dynamic.soname if dynamic else ""
