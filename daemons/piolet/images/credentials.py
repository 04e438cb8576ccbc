"""A user's credentials for one registry, found where podman, skopeo, docker and enroot put them.

Only the entry of the registry that is asked leaves the user's files, in a memory file that is handed
over open. Credential helpers run as the user, in the user's own process (helpers.py). What is seen and cannot be used
is told of when the registry refuses.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from piolet.base import files
from piolet.base.errors import ImageError
from piolet.images import netrc
from piolet.images.failures import Denied
from piolet.images.reference import Reference

LIMIT_BYTES = 64 * 1024
_FILE_LIMIT = 1024 * 1024
_HUB = "docker.io"
_HUB_KEYS = ("index.docker.io", "registry-1.docker.io", "auth.docker.io")
_HUB_SERVER = "https://index.docker.io/v1/"
_ENROOT = ".credentials"


@dataclass(frozen=True)
class Found:
    """What was found for a registry: `entry` ({'auth': …} or {'identitytoken': …}) or None, and from where.

    seen   clauses about what was there and could not be used
    """

    entry: dict[str, str] | None = None
    where: str = ""
    seen: tuple[str, ...] = ()

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """Say in the hint of a registry's refusal which credentials were used, and which could not be."""
        try:
            yield
        except Denied as error:
            used = (f"the credentials for it {self.where} were used, and not accepted",) if self.entry else ()
            raise Denied(error.message, "; ".join(text for text in (*used, *self.seen, error.hint) if text)) from None


def find(reference: Reference, variables: Mapping[str, str]) -> Found:
    """Return the credentials for the reference's registry, or what stood in their place.

    May run a credential helper, as the caller and for half a minute. Raises ImageError: the reference names a user
    and there are no credentials of that user; the file that REGISTRY_AUTH_FILE names cannot be read, or is not JSON.
    """
    seen: list[str] = []
    for path, required in _files(variables):
        for entry, where in _candidates(reference, path, required, variables, seen):
            if reference.user is None or _user(entry) == reference.user:
                return Found(entry, where, tuple(seen))
    if reference.user is not None:
        raise ImageError(
            f"there are no credentials of '{reference.user}' for {reference.registry}",
            "; ".join([*seen, f"log in first: podman login --username {reference.user} {reference.registry}"]),
        )
    return Found(seen=tuple(seen))


def _candidates(
    reference: Reference, path: str, required: bool, variables: Mapping[str, str], seen: list[str]
) -> Iterator[tuple[dict[str, str], str]]:
    """Yield the entries of one file for the registry, the narrowest first, each with a clause that says where it is."""
    if os.path.basename(path) == _ENROOT:
        for line in netrc.lines(_text(path), variables):
            if line.machine not in _machines(reference):
                continue
            if line.refusal:
                seen.append(f"{path} has an entry for {line.machine}, but {line.refusal}")
            else:
                yield _of_password(line.login, line.password), f"in {path}"
        return
    table = _table(path, required)
    named = table.get("credHelpers")
    helper = _of_hub(named).get(reference.registry) if isinstance(named, dict) else None
    if isinstance(helper, str):
        yield from _helped(helper, "credHelpers", reference, path, variables, seen)
    entries = _entries(table)
    for key in _keys(reference):
        if key in entries:
            yield entries[key], f"in {path}"
    helper = table.get("credsStore")
    if isinstance(helper, str) and helper:
        yield from _helped(helper, "credsStore", reference, path, variables, seen)


def _helped(
    helper: str, key: str, reference: Reference, path: str, variables: Mapping[str, str], seen: list[str]
) -> Iterator[tuple[dict[str, str], str]]:
    from piolet.images import helpers  # who has none loads nothing

    try:
        server = _HUB_SERVER if reference.registry == _HUB else reference.registry
        entry = helpers.ask(helper, server, variables)
    except helpers.HelperError as error:
        seen.append(f"{path} names a helper in {key}, but {error}")
        return
    if entry is not None:
        yield entry, f"from docker-credential-{helper}, which {path} names,"


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


@contextlib.contextmanager
def opened(registry: str, entry: dict[str, str] | None) -> Iterator[int]:
    """Give an auth.json in memory; an empty one keeps skopeo from looking for this process's own."""
    fd = in_memory(b"{}" if entry is None else document(registry, entry))
    try:
        yield fd
    finally:
        os.close(fd)


def _files(variables: Mapping[str, str]) -> list[tuple[str, bool]]:
    named = variables.get("REGISTRY_AUTH_FILE")
    if named:
        return [(named, True)]
    home = variables.get("HOME", "")
    found = []
    if variables.get("XDG_RUNTIME_DIR"):
        found.append(os.path.join(variables["XDG_RUNTIME_DIR"], "containers/auth.json"))
    if home:
        found.append(os.path.join(home, ".config/containers/auth.json"))
    if variables.get("DOCKER_CONFIG") or home:
        found.append(os.path.join(variables.get("DOCKER_CONFIG") or os.path.join(home, ".docker"), "config.json"))
    settings = variables.get("XDG_CONFIG_HOME") or (os.path.join(home, ".config") if home else "")
    enroot = variables.get("ENROOT_CONFIG_PATH") or (os.path.join(settings, "enroot") if settings else "")
    if enroot:
        found.append(os.path.join(enroot, _ENROOT))
    return [(path, False) for path in found]


def _text(path: str) -> str:
    """Return what is in a file that nobody has to have: '' where there is none."""
    try:
        return files.read_small(path, _FILE_LIMIT)[0].decode("utf-8", "replace")
    except (OSError, files.NotRegularError):
        return ""


def _table(path: str, required: bool) -> dict[str, Any]:
    """Return a JSON file's object; one that is not there or torn has nothing in it, unless it is `required`."""
    try:
        table = json.loads(files.read_small(path, _FILE_LIMIT)[0])
    except files.NotRegularError:
        if required:
            raise ImageError(f"cannot read REGISTRY_AUTH_FILE {path}: it is not a plain file") from None
        return {}
    except OSError as error:
        if required:
            raise ImageError(f"cannot read REGISTRY_AUTH_FILE {path}: {error.strerror}") from None
        return {}
    except (ValueError, RecursionError):
        if required:
            raise ImageError(f"REGISTRY_AUTH_FILE {path} is not JSON") from None
        return {}
    return table if isinstance(table, dict) else {}


def _entries(table: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Return the usable entries of a file by registry."""
    auths = table.get("auths")
    found = {key: _entry(value) for key, value in _of_hub(auths).items()} if isinstance(auths, dict) else {}
    return {key: entry for key, entry in found.items() if entry is not None}


def _of_hub(table: dict[str, Any]) -> dict[str, Any]:
    """Return a table by registry, without what docker writes around a registry's name; of two the first."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        plain = key.removeprefix("https://").removeprefix("http://")
        plain = plain.removesuffix("/").removesuffix("/v1").removesuffix("/v2")
        found.setdefault(_HUB if plain in _HUB_KEYS else plain, value)
    return found


def _machines(reference: Reference) -> tuple[str, ...]:
    """Return what enroot's file may call the registry: its host, without a port."""
    if reference.registry == _HUB:
        return (_HUB, *_HUB_KEYS)
    return (reference.registry, reference.registry.rpartition(":")[0] or reference.registry)


def _of_password(user: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def _entry(value: Any) -> dict[str, str] | None:
    if not isinstance(value, dict):
        return None
    entry = {k: v for k, v in value.items() if k in ("auth", "identitytoken") and isinstance(v, str) and v}
    user, password = value.get("username"), value.get("password")
    if not entry and isinstance(user, str) and isinstance(password, str) and user and password:
        return _of_password(user, password)
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
