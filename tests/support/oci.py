"""Image layouts made from Python descriptions, hostile ones included.

A layer is a list of entries, made by `file`, `folder`, `symlink`, `hardlink`, `device`; or any bytes.
`build` writes what skopeo's `dir:` transport reads (a Docker schema 2 or an OCI manifest), which
`registry.Registry.push` then pushes unchanged.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from piolet.images.manifest import machine_architecture

from tools.cluster.oci import KIND as OCI
from tools.cluster.oci import describe
from tools.cluster.oci import digest_of as digest

__all__ = ["OCI", "digest"]

# What images are made for unless a test says otherwise: this machine.
ARCHITECTURE = machine_architecture(os.uname().machine)
DOCKER = "application/vnd.docker"


@dataclass(frozen=True)
class Entry:
    """One tar entry."""

    info: tarfile.TarInfo
    data: bytes = b""


def file(name: str, data: bytes = b"", mode: int = 0o644, **more: Any) -> Entry:
    """Return a regular file."""
    return Entry(_info(name, tarfile.REGTYPE, mode, size=len(data), **more), data)


def folder(name: str, mode: int = 0o755, **more: Any) -> Entry:
    """Return a directory."""
    return Entry(_info(name, tarfile.DIRTYPE, mode, **more))


def symlink(name: str, target: str, **more: Any) -> Entry:
    """Return a symbolic link."""
    return Entry(_info(name, tarfile.SYMTYPE, 0o777, linkname=target, **more))


def hardlink(name: str, target: str, **more: Any) -> Entry:
    """Return a hard link to an entry by name."""
    return Entry(_info(name, tarfile.LNKTYPE, 0o644, linkname=target, **more))


def device(name: str, kind: bytes = tarfile.CHRTYPE, **more: Any) -> Entry:
    """Return a device node or FIFO."""
    return Entry(_info(name, kind, 0o666, devmajor=1, devminor=3, **more))


def whiteout(name: str) -> Entry:
    """Return what hides `name` of the layers below."""
    head, _, tail = name.rpartition("/")
    return file(f"{head}/.wh.{tail}" if head else f".wh.{tail}")


def opaque(name: str) -> Entry:
    """Return what hides all that the layers below have in the directory `name`."""
    return file(f"{name}/.wh..wh..opq")


def _info(name: str, kind: bytes, mode: int, **more: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.mtime, info.uid = kind, mode, 1_600_000_000, 1000
    for key, value in more.items():
        setattr(info, key, value)
    return info


def tar(entries: Iterable[Entry], form: int = tarfile.PAX_FORMAT) -> bytes:
    """Return an uncompressed tar archive."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form, errors="surrogateescape") as archive:
        for entry in entries:
            archive.addfile(entry.info, io.BytesIO(entry.data))
    return out.getvalue()


@dataclass(frozen=True)
class Packed:
    """A layer as it is stored, and the digest of what it unpacks to."""

    data: bytes
    diff_id: str
    kind: str


def pack(layer: Sequence[Entry] | bytes, compression: str = "gzip") -> Packed:
    """Return a layer compressed with gzip, zstd or nothing ('')."""
    raw = layer if isinstance(layer, bytes) else tar(layer)
    if compression == "gzip":
        data = gzip.compress(raw, 6, mtime=0)
    elif compression == "zstd":
        data = subprocess.run(["zstd", "-qc"], input=raw, stdout=subprocess.PIPE, check=True).stdout
    else:
        data = raw
    return Packed(data, digest(raw), compression)


def build(
    path: Path,
    layers: Sequence[Sequence[Entry] | bytes | Packed],
    *,
    docker: bool = False,
    architecture: str = ARCHITECTURE,
    settings: dict[str, Any] | None = None,
    diff_ids: list[str] | None = None,
) -> str:
    """Write an image to the new folder `path`, for skopeo's `dir:`; return its manifest's digest."""
    path.mkdir(parents=True)
    packed = [layer if isinstance(layer, Packed) else pack(layer) for layer in layers]
    config = json.dumps(
        {
            "architecture": architecture,
            "os": "linux",
            "config": settings or {},
            "rootfs": {"type": "layers", "diff_ids": diff_ids or [layer.diff_id for layer in packed]},
        }
    ).encode()
    suffix = {"gzip": "+gzip", "zstd": "+zstd", "": ""}
    described = [
        describe(
            f"{DOCKER}.image.rootfs.diff.tar.gzip" if docker else f"{OCI}.layer.v1.tar{suffix[layer.kind]}", layer.data
        )
        for layer in packed
    ]
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": f"{DOCKER}.distribution.manifest.v2+json" if docker else f"{OCI}.manifest.v1+json",
            "config": describe(f"{DOCKER}.container.image.v1+json" if docker else f"{OCI}.config.v1+json", config),
            "layers": described,
        }
    ).encode()
    for data in (config, *(layer.data for layer in packed)):
        (path / digest(data).removeprefix("sha256:")).write_bytes(data)
    (path / "manifest.json").write_bytes(manifest)
    (path / "version").write_text("Directory Transport Version: 1.1\n")
    return digest(manifest)


def archive(image: Path, out: Path, kind: str = "oci-archive", name: str = "test:latest") -> None:
    """Turn an image that `build` made into an archive, with skopeo."""
    skopeo = shutil.which("skopeo") or "skopeo"
    subprocess.run([skopeo, "--insecure-policy", "copy", "-q", f"dir:{image}", f"{kind}:{out}:{name}"], check=True)
