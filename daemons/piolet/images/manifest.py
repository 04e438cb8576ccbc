"""What a registry or an archive says of an image: manifests, lists of them, and image configurations. Pure.

Accepted: OCI manifests and indexes, Docker schema 2 manifests and lists. Refused, each in one
sentence: schema 1, artifacts that are no images, encrypted layers, another operating system or
architecture, documents that are not what they claim to be.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from piolet.base.errors import ImageError
from piolet.images.reference import is_digest

LIMIT_BYTES = 4 * 1024 * 1024
LIMIT_LAYERS = 1000
INDEXES = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
_INDEX_LEVELS = 4
_INDEXES_LOOKED_AT = 10
_DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_OCI = "application/vnd.oci.image."
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "i686": "386", "armv7l": "arm"}


@dataclass(frozen=True)
class Blob:
    """A blob by digest; `size` in bytes, as the manifest says."""

    digest: str
    size: int
    media_type: str = ""

    @property
    def hex(self) -> str:
        """Return the digest without its algorithm."""
        return self.digest.removeprefix("sha256:")


@dataclass(frozen=True)
class Manifest:
    """One image for one platform."""

    digest: str
    config: Blob
    layers: tuple[Blob, ...]
    mixed: bool = False
    """Docker's manifest with layers of OCI's types, which skopeo does not read."""

    @property
    def size(self) -> int:
        """Return the compressed size of all layers together, each different one once, in bytes."""
        return sum({blob.digest: blob.size for blob in self.layers}.values())


@dataclass(frozen=True)
class ImageConfig:
    """The parts of an image's configuration that Piolet uses, and the digests of its unpacked layers."""

    env: tuple[str, ...]
    entrypoint: tuple[str, ...]
    cmd: tuple[str, ...]
    workdir: str | None
    user: str
    architecture: str
    diff_ids: tuple[str, ...]
    labels: dict[str, str] = field(default_factory=dict)


def digest_of(raw: bytes) -> str:
    """Return the digest of a document as registries write it."""
    return "sha256:" + hashlib.sha256(raw).hexdigest()


def machine_architecture(machine: str) -> str:
    """Return the name that images have for what `uname -m` calls `machine`."""
    return _ARCHITECTURES.get(machine, machine)


def select(raw: bytes, fetch: Callable[[str], bytes], architecture: str, what: str) -> bytes:
    """Return the image manifest for Linux on `architecture` that `raw` is, or leads to; `fetch` gives one by digest.

    An index may name further ones, as builders that add attestations write it. Raises ImageError: nothing for this
    platform, several images of no platform, an index that leads nowhere or too deep, malformed.
    """
    seen: list[str] = []
    found = _search(raw, fetch, architecture, what, seen, _INDEX_LEVELS)
    if found is None:
        raise ImageError(
            f"the image {what} is not there for linux/{architecture}, which this machine is",
            f"it is there for {', '.join(seen)}" if seen else None,
        )
    return found


def _search(
    raw: bytes, fetch: Callable[[str], bytes], architecture: str, what: str, seen: list[str], levels: int
) -> bytes | None:
    document = _document(raw, what)
    if "manifests" not in document:
        return raw
    if levels == 0:
        raise ImageError(f"the image {what} is a list inside {_INDEX_LEVELS} lists of images")
    fitting, indexes, others = _entries(document, architecture, what, seen)
    for digest in dict.fromkeys((*fitting[:1], *indexes[:_INDEXES_LOOKED_AT])):
        found = _search(fetch(digest), fetch, architecture, what, seen, levels - 1)
        if found is not None:
            return found
    if len(others) > 1:
        raise ImageError(f"the image {what} is a list of {len(others)} images, and does not say of which platform")
    return _search(fetch(others[0]), fetch, architecture, what, seen, levels - 1) if others else None


def _entries(
    document: dict[str, Any], architecture: str, what: str, seen: list[str]
) -> tuple[list[str], list[str], list[str]]:
    """Return the digests of a list's entries for this platform, best first; of lists; and of images of no platform."""
    ranked: list[tuple[int, str]] = []
    indexes: list[str] = []
    others: list[str] = []
    for item in _array(document["manifests"], what)[:LIMIT_LAYERS]:
        entry = _object(item, what)
        platform, digest = _object(entry.get("platform") or {}, what), entry.get("digest")
        found = f"{platform.get('os', 'unknown')}/{platform.get('architecture', 'unknown')}"
        attests = "vnd.docker.reference.type" in _object(entry.get("annotations") or {}, what)
        if attests or not isinstance(digest, str) or not is_digest(digest):
            continue
        if found == f"linux/{architecture}":
            # The plain platform before its variants: a v3 variant may hold instructions that we lack.
            rank = {"": 0, "v8": 0, "v1": 1, "v2": 2}.get(str(platform.get("variant") or ""), 9)
            ranked.append((rank, digest))
        elif found != "unknown/unknown":
            seen += [found] if found not in seen else []
        elif entry.get("mediaType") in INDEXES:
            indexes.append(digest)
        elif not platform and digest not in others:
            others.append(digest)
    return [digest for _, digest in sorted(ranked, key=lambda pair: pair[0])], indexes, others


def parse_manifest(raw: bytes, what: str) -> Manifest:
    """Return the manifest in `raw`; raises ImageError naming `what`."""
    document = _document(raw, what)
    if "manifests" in document:
        raise ImageError(f"the image {what} is a list of images, where one was expected")
    if not isinstance(document.get("config"), dict) or not isinstance(document.get("layers"), list):
        raise ImageError(f"what was given for {what} is not an image manifest")
    config = _blob(document["config"], what)
    if "image.config" not in config.media_type and "container.image" not in config.media_type and config.media_type:
        raise ImageError(f"{what} is not a container image but an artifact of type {config.media_type[:80]}")
    layers = tuple(_blob(item, what) for item in document["layers"])
    if len(layers) > LIMIT_LAYERS:
        raise ImageError(f"the image {what} has {len(layers)} layers, more than {LIMIT_LAYERS}")
    for layer in layers:
        if layer.media_type.endswith("+encrypted"):
            raise ImageError(f"the image {what} has encrypted layers, which Piolet does not read")
    mixed = document.get("mediaType") == _DOCKER_MANIFEST
    mixed = mixed and any(blob.media_type.startswith(_OCI) for blob in (config, *layers))
    return Manifest(digest_of(raw), config, layers, mixed)


def parse_config(raw: bytes, what: str, architecture: str) -> ImageConfig:
    """Return the image configuration in `raw`; raises ImageError, also for another platform."""
    document = _document(raw, what)
    found, system = document.get("architecture") or architecture, document.get("os") or "linux"
    if (system, found) != ("linux", architecture):
        raise ImageError(
            f"the image {what} is made for {system}/{found}, but this machine is linux/{architecture}",
            "pull an image that was built for this architecture",
        )
    settings = _object(document.get("config") or {}, what)
    rootfs = _object(document.get("rootfs") or {}, what)
    workdir = settings.get("WorkingDir") or None
    if workdir is not None and (not isinstance(workdir, str) or "\0" in workdir):
        raise ImageError(f"the configuration of {what} has a malformed working directory")
    if workdir is not None and not workdir.startswith("/"):
        workdir = "/" + workdir
    diff_ids = _strings(rootfs.get("diff_ids"), what)
    if not all(is_digest(item) for item in diff_ids):
        raise ImageError(f"the configuration of {what} has a malformed layer digest")
    return ImageConfig(
        env=_strings(settings.get("Env"), what),
        entrypoint=_strings(settings.get("Entrypoint"), what),
        cmd=_strings(settings.get("Cmd"), what),
        workdir=workdir,
        user=str(settings.get("User") or ""),
        architecture=str(found),
        diff_ids=diff_ids,
        labels=_labels(settings.get("Labels"), what),
    )


def _labels(value: Any, what: str) -> dict[str, str]:
    labels = _object(value or {}, what)
    if not all(isinstance(text, str) and "\0" not in name + text for name, text in labels.items()):
        raise ImageError(f"the configuration of {what} has malformed labels")
    return labels


def _document(raw: bytes, what: str) -> dict[str, Any]:
    if len(raw) > LIMIT_BYTES:
        raise ImageError(f"what was given for {what} is larger than {LIMIT_BYTES} bytes")
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        raise ImageError(f"what was given for {what} is not JSON", "is that address a registry?") from None
    document = _object(document, what)
    if document.get("schemaVersion") == 1 or "fsLayers" in document:
        raise ImageError(
            f"the image {what} has a manifest of schema 1, which is out of use", "push it again with a recent tool"
        )
    return document


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ImageError(f"what was given for {what} is malformed: an object was expected")
    return value


def _array(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise ImageError(f"what was given for {what} is malformed: an array was expected")
    return value


def _strings(value: Any, what: str) -> tuple[str, ...]:
    items = _array(value or [], what)
    if not all(isinstance(item, str) and "\0" not in item for item in items):
        raise ImageError(f"the configuration of {what} has a value that should be an array of strings")
    return tuple(items)


def _blob(value: Any, what: str) -> Blob:
    table = _object(value, what)
    digest, size, kind = table.get("digest"), table.get("size"), table.get("mediaType") or ""
    if not isinstance(digest, str) or not is_digest(digest):
        raise ImageError(f"the manifest of {what} names a blob without a sha256 digest")
    if type(size) is not int or size < 0 or not isinstance(kind, str):
        raise ImageError(f"the manifest of {what} describes the blob {digest[:19]} badly")
    return Blob(digest, size, kind)
