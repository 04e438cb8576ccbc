"""A user's credentials for one registry, found where podman, skopeo and docker put them.

Only the entry of the registry that is asked leaves the user's files, in a memory file that is handed
over open. Credential helpers are not run: they are programs, and would run in srun.
"""

from __future__ import annotations

import base64
import binascii
import fcntl
import json
import os
from collections.abc import Mapping
from typing import Any

from piolet.base.errors import ImageError
from piolet.images.reference import Reference

LIMIT_BYTES = 64 * 1024
_FILE_LIMIT = 1024 * 1024
_HUB = "docker.io"
_HUB_KEYS = ("index.docker.io", "registry-1.docker.io")


def find(reference: Reference, variables: Mapping[str, str]) -> dict[str, str] | None:
    """Return the entry for the reference's registry, {'auth': …}, or None.

    Raises ImageError: the reference names a user and there are no credentials of that user; the file
    that REGISTRY_AUTH_FILE names cannot be read, or is not JSON.
    """
    for path, required in _files(variables):
        entries = _entries(path, required)
        for key in _keys(reference):
            entry = entries.get(key)
            if entry is not None and (reference.user is None or _user(entry) == reference.user):
                return entry
    if reference.user is not None:
        raise ImageError(
            f"there are no credentials of '{reference.user}' for {reference.registry}",
            f"log in first: podman login --username {reference.user} {reference.registry}",
        )
    return None


def document(registry: str, entry: dict[str, str]) -> bytes:
    """Return an auth.json that holds `entry` and nothing else."""
    return json.dumps({"auths": {registry: entry}}).encode()


def check(data: bytes, registry: str) -> dict[str, str]:
    """Return the entry in an auth.json that a client handed over; raises ImageError unless it is just that one."""
    try:
        value = json.loads(data)
        entry = value["auths"][registry]
        alone = set(value) == {"auths"} and set(value["auths"]) == {registry}
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ImageError("the credentials that came with the request cannot be read") from None
    cleaned = _entry(entry)
    if not alone or cleaned is None:
        raise ImageError(f"the credentials that came with the request are not for {registry} alone")
    return cleaned


def read(fd: int, registry: str) -> dict[str, str]:
    """Return the entry in the memory file that a client handed over; raises ImageError."""
    try:
        fcntl.fcntl(fd, fcntl.F_GET_SEALS)  # only a memory file has seals; reading anything else could block us
        data = os.pread(fd, LIMIT_BYTES, 0)
    except OSError:
        raise ImageError("the credentials have to come as a memory file") from None
    return check(data, registry)


def in_memory(data: bytes) -> int:
    """Return a new descriptor of a memory file with `data`, at its start."""
    fd = os.memfd_create("piolet-credentials", os.MFD_CLOEXEC)
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _files(variables: Mapping[str, str]) -> list[tuple[str, bool]]:
    named = variables.get("REGISTRY_AUTH_FILE")
    if named:
        return [(named, True)]
    found = []
    if variables.get("XDG_RUNTIME_DIR"):
        found.append((os.path.join(variables["XDG_RUNTIME_DIR"], "containers/auth.json"), False))
    if variables.get("HOME"):
        found.append((os.path.join(variables["HOME"], ".config/containers/auth.json"), False))
        found.append((os.path.join(variables["HOME"], ".docker/config.json"), False))
    return found


def _entries(path: str, required: bool) -> dict[str, dict[str, str]]:
    """Return the usable entries of a file by registry; one that is not there or torn has none, unless `required`."""
    try:
        with open(path, "rb") as file:
            table = json.loads(file.read(_FILE_LIMIT))
    except OSError as error:
        if required:
            raise ImageError(f"cannot read REGISTRY_AUTH_FILE {path}: {error.strerror}") from None
        return {}
    except (ValueError, RecursionError):
        if required:
            raise ImageError(f"REGISTRY_AUTH_FILE {path} is not JSON") from None
        return {}
    auths: Any = table.get("auths") if isinstance(table, dict) else None
    entries: dict[str, dict[str, str]] = {}
    for key, value in auths.items() if isinstance(auths, dict) else ():
        entry = _entry(value)
        if entry is not None:
            plain = key.removeprefix("https://").removeprefix("http://")
            plain = plain.removesuffix("/").removesuffix("/v1").removesuffix("/v2")
            entries.setdefault(_HUB if plain in _HUB_KEYS else plain, entry)
    return entries


def _entry(value: Any) -> dict[str, str] | None:
    if not isinstance(value, dict):
        return None
    entry = {k: v for k, v in value.items() if k in ("auth", "identitytoken") and isinstance(v, str) and v}
    return entry or None


def _keys(reference: Reference) -> list[str]:
    """Return the names under which credentials may be filed, the narrowest first."""
    parts = reference.name.split("/")
    return ["/".join(parts[:count]) for count in range(len(parts), 0, -1)]


def _user(entry: dict[str, str]) -> str | None:
    try:
        return base64.b64decode(entry.get("auth", ""), validate=True).decode().partition(":")[0]
    except (binascii.Error, UnicodeDecodeError):
        return None
