"""Archives of images: what `podman save`, `docker save` and `skopeo copy` write, read as a stream into blobs.

Of an archive only plain files are taken, under names of ours: a blob by the digest that its content has, documents in
memory. No name of the archive's is ever a path here, so no link in it can be followed. Refused, each in one sentence:
links, device nodes, sparse files, names with anything but letters, digits, dot, dash and underscore, names that come
twice, blobs that are not what their name says, files that belong to no image, and more than the limits hold.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import select
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from piolet.base import units
from piolet.base.errors import ImageError
from piolet.images import manifest as documents
from piolet.images.blob import LayerStream, Unpacked, needs_a_file, unpacked
from piolet.images.reference import is_digest
from piolet.images.tarstream import Member, TarReader

KINDS = ("archive", "oci-archive", "docker-archive")
ENTRIES_LIMIT = 10_000
_OTHER_LIMIT = 1 << 20
_SILENCE_S = 60
_COMPONENT = re.compile(rb"[A-Za-z0-9._-]{1,255}")
_BLOB = re.compile(r"blobs/sha256/([0-9a-f]{64})")
# Layers and configurations of `docker save`, old and new, and of skopeo; the last two are of use to nobody today.
_DOCKER = re.compile(r"[0-9a-f]{64}(?:\.tar|\.json|/layer\.tar|/json|/VERSION)")
_OLD_LINK = re.compile(r"([0-9a-f]{64})/layer\.tar")
_OLD_TARGET = re.compile(rb"\.\./[0-9a-f]{64}(?:\.tar|/layer\.tar)")
_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
_SAVE_AGAIN = "save it again with a current docker or podman, or make an oci-archive: skopeo copy … oci-archive:FILE"


@dataclass
class _Found:
    """What was in an archive: blobs by the name that they had, documents by theirs, and the names of old links."""

    blobs: dict[str, documents.Blob] = field(default_factory=dict)
    documents: dict[str, bytes] = field(default_factory=dict)
    links: set[str] = field(default_factory=set)


def read(fd: int, kind: str, folder: str, what: str, limit: int, tell: Callable[[int], None]) -> documents.Manifest:
    """Read the archive at `fd`, a file or a pipe, into the new `folder`: manifest.json, and blobs named by digest.

    Only the image for this machine stays there. `tell` is given how many bytes of blobs have come. Raises ImageError
    about `what`.
    """
    os.mkdir(folder, 0o700)
    try:
        with _stream(fd, os.path.join(folder, "archive"), limit) as stream:
            found = _take(stream, folder, limit, tell)
    except ImageError as error:
        raise ImageError(f"cannot import {what}: {error.message}", error.hint) from None
    if kind == "archive":
        kind = "oci-archive" if "index.json" in found.documents else "docker-archive"
    raw = (_oci if kind == "oci-archive" else _docker)(found, folder, what)
    manifest = documents.parse_manifest(raw, what)
    wanted = {blob.digest: blob for blob in (manifest.config, *manifest.layers)}
    there = {blob.digest: blob.size for blob in found.blobs.values()}
    for digest, blob in wanted.items():
        if digest not in there:
            raise ImageError(f"cannot import {what}: the blob {digest[:19]} is missing", "not all of it is there")
        if there[digest] != blob.size:
            raise ImageError(
                f"cannot import {what}: the blob {digest[:19]} has {there[digest]} bytes, "
                f"but its manifest says {blob.size}"
            )
    for digest in there.keys() - wanted.keys():
        os.unlink(_place(folder, digest))
    with open(os.path.join(folder, "manifest.json"), "xb") as file:
        file.write(raw)
    return manifest


def select_oci(index: bytes, blob: Callable[[str], bytes], what: str, architecture: str) -> bytes:
    """Return the manifest that an OCI layout's index.json means on this architecture; `blob` gives one by digest."""
    entries = _images(_json(index, "index.json", what), what)
    raw = blob(entries[0]["digest"]) if len(entries) == 1 else json.dumps({"manifests": entries}).encode()
    if "manifests" in (document := _json(raw, "a manifest", what)):
        _images(document, what)
    return documents.select(raw, blob, architecture, what)


def _images(index: dict[str, Any], what: str) -> list[dict[str, Any]]:
    """Return the entries of an index that may be images: no attestations, whose platform is unknown/unknown."""
    entries = index.get("manifests")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ImageError(f"cannot import {what}: its index has no list of manifests")
    found: list[dict[str, Any]] = []
    for entry in entries[: documents.LIMIT_LAYERS]:
        platform, annotations = entry.get("platform") or {}, entry.get("annotations") or {}
        if not isinstance(platform, dict) or not isinstance(annotations, dict):
            raise ImageError(f"cannot import {what}: its index is malformed")
        if "vnd.docker.reference.type" in annotations or platform.get("os") == "unknown":
            continue
        if not isinstance(entry.get("digest"), str) or not is_digest(entry["digest"]):
            raise ImageError(f"cannot import {what}: its index names a manifest without a sha256 digest")
        if entry["digest"] not in [other["digest"] for other in found]:
            found.append(entry)
    if not found:
        raise ImageError(f"cannot import {what}: its index names no image")
    if len(found) > 1 and not any(isinstance(entry.get("platform"), dict) for entry in found):
        raise ImageError(
            f"cannot import {what}: the archive has {len(found)} images", "save one image alone, and import that"
        )
    return found


def _oci(found: _Found, folder: str, what: str) -> bytes:
    for name in ("oci-layout", "index.json"):
        if name not in found.documents:
            raise ImageError(
                f"cannot import {what}: it is no OCI archive, as it has no {name}",
                "make one with: podman save --format oci-archive",
            )

    def blob(digest: str) -> bytes:
        held = found.blobs.get(f"blobs/sha256/{digest.removeprefix('sha256:')}")
        if held is None:
            raise ImageError(f"cannot import {what}: the manifest {digest[:19]} is missing", "not all of it is there")
        return _document(folder, held)

    return select_oci(found.documents["index.json"], blob, what, documents.machine_architecture(os.uname().machine))


def _docker(found: _Found, folder: str, what: str) -> bytes:
    """Return a manifest for what manifest.json names: the archive has none with digests."""
    if "manifest.json" not in found.documents:
        raise ImageError(
            f"cannot import {what}: it is neither an OCI nor a docker archive",
            "make one with: podman save --format oci-archive",
        )
    value = _json(found.documents["manifest.json"], "manifest.json", what, of=list)
    if len(value) != 1:
        raise ImageError(
            f"cannot import {what}: the archive has {len(value)} images", "save one image alone, and import that"
        )
    entry = value[0] if isinstance(value[0], dict) else {}
    layers, config = entry.get("Layers"), entry.get("Config")
    if not isinstance(config, str) or not isinstance(layers, list) or len(layers) > documents.LIMIT_LAYERS:
        raise ImageError(f"cannot import {what}: its manifest.json is malformed")
    described = []
    for name in (config, *layers):
        blob = found.blobs.get(name) if isinstance(name, str) else None
        if blob is None:
            if name in found.links:
                raise ImageError(f"cannot import {what}: its layer {name} is a symbolic link", _SAVE_AGAIN)
            raise ImageError(f"cannot import {what}: a file that its manifest.json names is missing", _SAVE_AGAIN)
        described.append({"mediaType": _LAYER, "size": blob.size, "digest": blob.digest})
    described[0]["mediaType"] = "application/vnd.docker.container.image.v1+json"
    made = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": described[0],
        "layers": described[1:],
    }
    return json.dumps(made).encode()


def _too_large(limit: int) -> ImageError:
    return ImageError(
        f"it is larger than {units.size(limit)}, the limit",
        "an archive may take what your quota leaves, at most 512 GiB, and half of what is free in the store",
    )


def _take(stream: LayerStream, folder: str, limit: int, tell: Callable[[int], None]) -> _Found:
    """Write each blob of the archive to `folder`, named by its digest, and keep the documents."""
    found, seen = _Found(), set()
    others = done = 0
    reader = TarReader(stream)
    for number, member in enumerate(reader.members()):
        if number >= ENTRIES_LIMIT:
            raise ImageError(f"the archive has more than {ENTRIES_LIMIT} entries")
        name = _name(member)
        if member.kind == "dir":
            continue
        if name in seen:
            raise ImageError(f"the archive has {_shown(name)} twice")
        seen.add(name)
        if member.kind == "symlink" and _OLD_LINK.fullmatch(name) and _OLD_TARGET.fullmatch(member.target):
            found.links.add(name)  # docker and skopeo write them beside what manifest.json names
            continue
        _refuse(member, name)
        if (match := _BLOB.fullmatch(name)) or _DOCKER.fullmatch(name):
            if done + member.size > limit:
                raise _too_large(limit)
            found.blobs[name] = _blob(reader, member, folder, match[1] if match else None, done, tell)
            done += member.size
            continue
        document = name in ("index.json", "manifest.json")
        others += 0 if document else member.size
        if others > _OTHER_LIMIT or (document and member.size > documents.LIMIT_BYTES):
            raise ImageError(
                f"the archive has the file {_shown(name)}, which is too large for what belongs to no image",
                "is it another kind of archive?",
            )
        pieces: list[bytes] = []
        reader.copy(member, pieces.append)
        found.documents[name] = b"".join(pieces)
    return found


def _name(member: Member) -> str:
    """Return the name of an entry, without the ./ that some begin with; '' is the archive's own directory."""
    name = member.name.removesuffix(b"/") if member.kind == "dir" else member.name
    if name.startswith(b"./"):
        name = name[2:]
    if member.kind == "dir" and name in (b"", b"."):
        return ""
    for part in name.split(b"/"):
        if part in (b".", b"..") or not _COMPONENT.fullmatch(part):
            raise ImageError(f"the archive has an entry with the name {_shown(member.name.decode('ascii', 'replace'))}")
    return name.decode("ascii")


def _refuse(member: Member, name: str) -> None:
    if member.kind in ("symlink", "link"):
        kind = "symbolic" if member.kind == "symlink" else "hard"
        raise ImageError(
            f"the archive has the {kind} link {_shown(name)}, and archives of images have none", _SAVE_AGAIN
        )
    if member.kind != "file":
        raise ImageError(f"the archive has the device node or FIFO {_shown(name)}, and archives of images have none")
    if member.segments is not None:
        raise ImageError(f"the archive has the sparse file {_shown(name)}, and archives of images have none")


def _blob(
    reader: TarReader, member: Member, folder: str, promised: str | None, before: int, tell: Callable[[int], None]
) -> documents.Blob:
    """Write one file of the archive under its digest; `promised` is the one that its name tells."""
    digest = hashlib.sha256()
    place = os.path.join(folder, "incoming")
    fd = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb", buffering=0) as file:

        def keep(piece: bytes) -> None:
            nonlocal before
            digest.update(piece)
            view = memoryview(piece)
            while view:
                view = view[file.write(view) :]
            before += len(piece)
            tell(before)

        reader.copy(member, keep)
    found = digest.hexdigest()
    if promised is not None and found != promised:
        raise ImageError(f"the blob sha256:{promised[:12]} does not have the content that its digest promises")
    os.rename(place, os.path.join(folder, found))
    return documents.Blob(f"sha256:{found}", member.size)


def _document(folder: str, blob: documents.Blob) -> bytes:
    with open(_place(folder, blob.digest), "rb") as file:
        return file.read(documents.LIMIT_BYTES + 1)


def _place(folder: str, digest: str) -> str:
    return os.path.join(folder, digest.removeprefix("sha256:"))


def _json(raw: bytes, name: str, what: str, of: type = dict) -> Any:
    try:
        value = json.loads(raw) if len(raw) <= documents.LIMIT_BYTES else None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, of):
        raise ImageError(f"cannot import {what}: {name} in it is not the JSON that it should be")
    return value


def _shown(name: str) -> str:
    return repr(name if len(name) <= 100 else name[:80] + "…")


def _stream(fd: int, spare: str, limit: int) -> LayerStream:
    """Return the archive's tar; one in zstd that comes through a pipe is written to `spare` first."""
    fd = os.dup(fd)
    magic = b""
    while len(magic) < 6 and (chunk := _patient(fd, 6 - len(magic))):
        magic += chunk
    try:
        os.lseek(fd, 0, os.SEEK_SET)
        whole = True
    except OSError:
        whole = False
    if not whole and needs_a_file(magic):
        fd = _spooled(fd, magic, spare, limit)
        whole = True
    left = b"" if whole else magic

    def raw(number: int, count: int) -> bytes:
        nonlocal left
        if left:
            piece, left = left, b""
            return piece
        return _patient(number, count)

    source: Unpacked = unpacked(fd, magic, raw)
    return LayerStream(source, None)


def _spooled(fd: int, magic: bytes, spare: str, limit: int) -> int:
    with os.fdopen(fd, "rb", buffering=0), open(spare, "x+b") as out:
        os.unlink(spare)
        out.write(magic)
        while chunk := _patient(fd, 1 << 20):
            out.write(chunk)
            if out.tell() > limit:
                raise _too_large(limit)
        out.flush()
        whole = os.dup(out.fileno())
    os.lseek(whole, 0, os.SEEK_SET)
    return whole


def _patient(fd: int, count: int) -> bytes:
    """Read from a file or pipe of the user's; one that stays silent is given up."""
    waiting = select.poll()
    with contextlib.suppress(PermissionError):
        waiting.register(fd, select.POLLIN | select.POLLHUP)
        if not waiting.poll(_SILENCE_S * 1000):
            raise ImageError(f"nothing more of it arrived for {_SILENCE_S} s")
    return os.read(fd, count)
