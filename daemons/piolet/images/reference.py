"""References to images: parse, check, normalise. Pure.

Accepted: `ubuntu:24.04`, `docker.io/library/ubuntu`, `docker://host:5000/team/app:1`,
`[USER@]REGISTRY#IMAGE[:TAG]` as enroot writes it, and `…@sha256:…`. Refused, with a hint: other
transports, upper case in names, malformed tags, digests and hosts, anything with white space.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from piolet.base.errors import ImageError

LOCAL = "localhost"
"""The registry name, without a port, under which imported images are filed; nothing is pulled from it."""

_LIMIT = 1024
_HOST = re.compile(
    r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*)"
    r"(?::([0-9]{1,5}))?"
)
_PATH = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_USER = re.compile(r"[^\s@#/]{1,128}")
_TRANSPORTS = ("oci:", "oci-archive:", "docker-archive:", "dir:", "docker-daemon:", "containers-storage:", "dockerd:")
_DOCKER_HUB = ("index.docker.io", "registry-1.docker.io", "registry.hub.docker.com")


@dataclass(frozen=True)
class Reference:
    """An image by tag or by digest: exactly one of the two is set. `user` chooses among credentials."""

    registry: str
    repository: str
    tag: str | None
    digest: str | None
    user: str | None = None

    @property
    def name(self) -> str:
        """Return registry and repository, without tag or digest."""
        return f"{self.registry}/{self.repository}"

    def __str__(self) -> str:
        return f"{self.name}@{self.digest}" if self.digest else f"{self.name}:{self.tag}"

    @property
    def is_local(self) -> bool:
        """Return whether the reference names something that was imported, not pulled."""
        return self.registry == LOCAL

    @property
    def is_loopback(self) -> bool:
        """Return whether the registry is on this very machine, where any user may listen on a port."""
        host = self.registry
        if host.startswith("["):
            return host[1:].split("]")[0] == "::1"
        host = host.rsplit(":", 1)[0]
        return host == "localhost" or re.fullmatch(r"127(\.[0-9]{1,3}){3}", host) is not None


def is_path(text: str) -> bool:
    """Return whether `text` names a file rather than an image in a registry."""
    return text.startswith(("/", "./", "../")) or text.endswith((".sqsh", ".squashfs"))


def is_digest(text: str) -> bool:
    """Return whether `text` is `sha256:` and 64 hexadecimal digits."""
    return _DIGEST.fullmatch(text) is not None


def parse(text: str) -> Reference:
    """Return the normalised reference in `text`; raises ImageError when it is malformed."""
    shown = text if len(text) <= 120 else text[:117] + "..."
    if not text or len(text) > _LIMIT:
        raise ImageError(f"an image reference has 1 to {_LIMIT} characters, not {len(text)}")
    if any(c.isspace() or not c.isprintable() for c in text):
        raise ImageError(f"the image reference {shown!r} contains white space or control characters")
    rest = text.removeprefix("docker://")
    if rest == text:
        if text.startswith(_TRANSPORTS):
            raise ImageError(
                f"the image reference '{shown}' is not a registry's", f"bring it in first: piolet image import {shown}"
            )
        if "://" in text:
            raise ImageError(f"the image reference '{shown}' has an unknown scheme", "only docker:// is known")
    rest, user, registry = _split_registry(rest, shown)
    rest, _, digest = rest.partition("@")
    if digest and not is_digest(digest):
        raise ImageError(
            f"the image reference '{shown}' has a malformed digest",
            "a digest is @sha256: and 64 hexadecimal digits in lower case",
        )
    repository, colon, tag = rest.partition(":")
    if (colon and not tag) or (tag and not _TAG.fullmatch(tag)):
        raise ImageError(
            f"the image reference '{shown}' has a malformed tag",
            "a tag has letters, digits, '_', '.', '-', at most 128; REGISTRY#IMAGE:TAG names a registry without a dot",
        )
    if registry == "docker.io" and repository and "/" not in repository:
        repository = f"library/{repository}"
    if not _PATH.fullmatch(repository) or len(repository) > 255:
        hint = "names have lower-case letters, digits, and '.', '_', '-', '/' between them"
        if repository != repository.lower():
            hint = f"names are lower case: '{repository.lower()}'"
        raise ImageError(f"the image reference '{shown}' has a malformed name", hint)
    if rest.endswith("@") or text.endswith("@"):
        raise ImageError(f"the image reference '{shown}' has an empty digest")
    return Reference(registry, repository, None if digest else tag or "latest", digest or None, user)


def _split_registry(rest: str, shown: str) -> tuple[str, str | None, str]:
    """Return what follows the registry, the user or None, and the registry in its usual spelling."""
    user: str | None = None
    if "#" in rest:
        registry, _, rest = rest.partition("#")
        if "@" in registry:
            user, _, registry = registry.rpartition("@")
            if not _USER.fullmatch(user):
                raise ImageError(f"the image reference '{shown}' has a malformed user before '@'")
        if "#" in rest:
            raise ImageError(f"the image reference '{shown}' has more than one '#'")
        registry = registry or "docker.io"
    else:
        first, slash, tail = rest.partition("/")
        if slash and ("." in first or ":" in first or first == LOCAL):
            registry, rest = first, tail
        else:
            registry = "docker.io"
    match = _HOST.fullmatch(registry)
    if match is None or len(registry) > 255 or (match[1] is not None and not 0 < int(match[1]) < 65536):
        raise ImageError(f"the image reference '{shown}' has a malformed registry '{registry}'")
    registry = registry.lower()
    if "." not in registry and ":" not in registry and registry != LOCAL:
        registry += ":443"  # else 'host/name' would be read, by us and by skopeo, as a name on Docker Hub
    return rest, user, "docker.io" if registry in _DOCKER_HUB else registry
