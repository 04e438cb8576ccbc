"""Which sources there are; each is imported when it is its turn."""

from __future__ import annotations

import importlib

from piolet.api import Source
from piolet.observe.lists import listed

GPU, HOST = "gpu", "host"
"""Not sources of this room: collectors of samples/collectors, which a site may leave out by these names as well."""

SOURCES = {
    "groups": "piolet.observe.sources.groups:Groups",
    "files": "piolet.observe.sources.files:Files",
    "lustre": "piolet.observe.sources.lustre:Lustre",
    "nfs": "piolet.observe.sources.nfs:Nfs",
    "disks": "piolet.observe.sources.disks:Disks",
    "cxi": "piolet.observe.sources.cxi:Cxi",
    "infiniband": "piolet.observe.sources.infiniband:Infiniband",
    "ethernet": "piolet.observe.sources.ethernet:Ethernet",
    "tcp": "piolet.observe.sources.tcp:Tcp",
    "cray_power": "piolet.observe.sources.cray_power:CrayPower",
    "rapl": "piolet.observe.sources.rapl:Rapl",
}
NAMES = (GPU, HOST, *SOURCES)


def unknown(without: str) -> list[str]:
    """Return the names in the setting `without` that no source has."""
    names, left_out = listed(without)
    return sorted((names | left_out) - set(NAMES))


def classes(without: str = "") -> list[type[Source]]:
    """Return the classes of all sources but those, in the order in which one is preferred that tells the same."""
    left_out = listed(without)[0]
    found = []
    for name, place in SOURCES.items():
        if name not in left_out:
            module, _, class_name = place.partition(":")
            found.append(getattr(importlib.import_module(module), class_name))
    return found


def needs(without: str = "") -> list[str]:
    """Return what only root may open and sources read: patterns of paths."""
    return [path for each in classes(without) for path in each.needs]
