"""Programs of the node that run in any image: by the node's own dynamic loader, with the node's own libraries."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from piolet.api import Entry, Missing, Mount, Node

_LOADERS = {"x86_64": "ld-linux-x86-64.so.2", "aarch64": "ld-linux-aarch64.so.1", "ppc64le": "ld64.so.2"}


def carry(node: Node, patterns: Iterable[str], place: str, more: Sequence[str] = ()) -> tuple[list[Entry], str]:
    """Return mounts of the libraries of what these patterns have found, and the words that start such a program.

    The directories are mounted whole, below `place`, where nothing of the image looks; `more` are further ones.

    Raises Missing: what was found needs no C library of the node's, or nothing was found.
    """
    libraries: dict[str, str] = {}
    for pattern in patterns:
        libraries.update((shared.soname, shared.path) for shared in node.needed.get(pattern, ()))
    loader = libraries.get(_LOADERS.get(node.machine, ""))
    if loader is None:
        raise Missing(f"{next(iter(patterns))} is not on this node, or not a program for {node.machine}")
    folders = dict.fromkeys([*(os.path.dirname(path) for path in libraries.values()), *more])
    inside = {folder: f"{place}/lib{number}" for number, folder in enumerate(folders)}
    mounts: list[Entry] = [Mount(folder, path) for folder, path in inside.items()]
    start = f"{inside[os.path.dirname(loader)]}/{os.path.basename(loader)}"
    return mounts, f"{start} --library-path {':'.join(inside.values())}"
