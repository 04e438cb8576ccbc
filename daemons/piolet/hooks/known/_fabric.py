"""Where the libraries of a network stack come from: the node itself, or one of the stacks that a site keeps for them.

Facts: CSCS, container engine, "Selecting the network stack source", read 2026-11-29. Untested on hardware.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from piolet.api import Asked, Entry, Library, Missing, Mount, Node

PREFIX = "com.hooks.netstack."
SOURCES = ("host", "artifact")
HOST_LIBFABRIC = ("/opt/cray/libfabric/host/lib64/libfabric.so.1", "/opt/cray/libfabric/*/lib64/libfabric.so.1")
HOST_CXI = ("/usr/lib64/libcxi.so.1", "/usr/lib/x86_64-linux-gnu/libcxi.so.1", "/usr/lib/aarch64-linux-gnu/libcxi.so.1")
PLACE = "/run/piolet/fabric"
# Of the C library and the compiler's: those of the image serve.
_IMAGE_S = ("ld-linux", "libc.", "libm.", "libpthread.", "libdl.", "librt.", "libresolv.", "libgcc_s.", "libstdc++.")


def source(asked: Asked) -> str:
    """Return 'host' or 'artifact'."""
    return asked.annotations.get(PREFIX + "source", asked.site.get("source", "host")).partition(":")[0]


def pattern(site: Mapping[str, str], library: str) -> str:
    """Return the pattern of a library in the site's stacks, or ''."""
    return f"{site['base']}/*/*/*/{library}" if site.get("base") else ""


def artifact(asked: Asked, node: Node, library: str) -> str:
    """Return the directory of the stack that is asked for, which has this library. Raises Missing."""
    base = asked.site.get("base", "")
    # Earlier pages of CSCS' have the release behind a colon.
    named = asked.annotations.get(PREFIX + "source", "").partition(":")[2]
    version = named or asked.annotations.get(PREFIX + "version", asked.site.get("version", "latest"))
    name = asked.annotations.get(PREFIX + "name", asked.site.get("name", "default"))
    if not base:
        raise Missing("no network stacks are kept here", "the site sets [hooks] options netstack.base=DIRECTORY")
    found = node.paths(pattern(asked.site, library))
    # The directories spell a colon of a name as it is, or as an underscore.
    for one in (name, name.replace(":", "_").replace(",", "-")):
        directory = f"{base}/{node.machine}/{version}/{one}"
        if f"{directory}/{library}" in found:
            return directory
    raise Missing(f"there is no network stack {version}/{name} with {library} below {base}/{node.machine}")


def of_directory(directory: str, *libraries: str) -> list[Entry]:
    """Return a directory at its own place (its libraries look for each other there), and the libraries to be found."""
    return [Mount(directory, directory), *(Library(name, f"{directory}/{name}") for name in libraries)]


def of_host(node: Node, patterns: tuple[str, ...], soname: str) -> list[Entry]:
    """Return a library of the node, found first, and what it needs, found where the image has none. Raises Missing."""
    path = node.first(*patterns)
    if not path:
        raise Missing(f"there is no {soname} on this node ({', '.join(patterns)})")
    entries: list[Entry] = [Mount(path, f"{PLACE}/{soname}"), Library(soname, f"{PLACE}/{soname}")]
    where = next(one for one in patterns if path in node.paths(one))
    for needed in node.needed.get(where, ()):
        if not needed.soname.startswith(_IMAGE_S) and needed.soname != soname:
            place = f"{PLACE}/{os.path.basename(needed.soname)}"
            entries += [Mount(needed.path, place), Library(needed.soname, place, last=True)]
    return entries
