"""NVIDIA's DCGM in a container: its libraries, which talk to the node's nv-hostengine."""

from __future__ import annotations

import os
from collections.abc import Iterable

from piolet.api import Asked, Entry, Hook, Library, Missing, Mount, Node, Step

_PATTERNS = tuple(
    f"{folder}/{name}"
    for folder in ("/usr/lib64", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu")
    for name in ("libdcgm*.so*", "libnvperf_dcgm_host.so*")
)
_DIRECTORIES = ("/usr/local/dcgm", "/usr/libexec/datacenter-gpu-manager-4", "/usr/share/datacenter-gpu-manager-4")


class Dcgm(Hook):
    """Libraries at the places where the node has them, and found by their names."""

    name = "dcgm"
    text = "NVIDIA's DCGM libraries of the node, for tools that read GPU counters inside"
    source = "CSCS, gssr's hook for DCGM; read 2026-11-29"
    hardware = "NVIDIA GPUs"
    looks = (*_PATTERNS, *_DIRECTORIES)

    def entries(self, asked: Asked, node: Node, step: Step) -> Iterable[Entry]:
        """Each library and each of its links is a mount of its own."""
        found: list[Entry] = []
        for path in [path for pattern in _PATTERNS for path in node.paths(pattern)]:
            found += [Mount(path, path), Library(os.path.basename(path), path)]
        if not found:
            raise Missing("DCGM is not installed on this node")
        return [*found, *(Mount(path, path) for pattern in _DIRECTORIES for path in node.paths(pattern))]
