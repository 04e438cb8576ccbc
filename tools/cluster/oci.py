"""Write an OCI image layout with one layer, from a tar file. Nothing else of the format is here."""

from __future__ import annotations

import gzip
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

CHUNK = 1 << 20
# The layer is read once or twice on this machine: a fast compression wins over a small one.
GZIP_LEVEL = 1

KIND = "application/vnd.oci.image"
MANIFEST = f"{KIND}.manifest.v1+json"
CONFIG = f"{KIND}.config.v1+json"
LAYER = f"{KIND}.layer.v1.tar+gzip"
INDEX = f"{KIND}.index.v1+json"


@dataclass(frozen=True)
class ImageConfig:
    """What the image says of itself. `architecture` is in OCI's words: amd64, arm64."""

    architecture: str
    env: tuple[str, ...]
    workdir: str = "/"
    command: tuple[str, ...] = ("/bin/sh",)


class _Digesting:
    """A file that is hashed and counted as it is written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.hash = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        self.size += len(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


def digest_of(data: bytes) -> str:
    """Return `sha256:…` of `data`."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def describe(media_type: str, data: bytes) -> dict[str, Any]:
    """Return what names a blob in a manifest or an index."""
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}


def write_layout(directory: Path, tag: str, layer: Path, config: ImageConfig) -> str:
    """Write a layout whose image `tag` has `layer` (a tar file) as its only layer; return its digest.

    The same input gives the same bytes. The directory must be empty or absent.
    """
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    layer_descriptor, diff_id = _add_layer(blobs, layer)
    config_descriptor = _add_json(
        blobs,
        CONFIG,
        {
            "architecture": config.architecture,
            "os": "linux",
            "config": {"Env": list(config.env), "WorkingDir": config.workdir, "Cmd": list(config.command)},
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        },
    )
    manifest = _add_json(
        blobs,
        MANIFEST,
        {"schemaVersion": 2, "mediaType": MANIFEST, "config": config_descriptor, "layers": [layer_descriptor]},
    )
    index = {
        "schemaVersion": 2,
        "mediaType": INDEX,
        "manifests": [{**manifest, "annotations": {"org.opencontainers.image.ref.name": tag}}],
    }
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}', "ascii")
    (directory / "index.json").write_bytes(_encode(index))
    return str(manifest["digest"])


def read_digest(directory: Path, tag: str) -> str | None:
    """Return the manifest digest of `tag` in a layout, or None."""
    try:
        index = json.loads((directory / "index.json").read_text("utf-8"))
        for entry in index["manifests"]:
            if entry["annotations"]["org.opencontainers.image.ref.name"] == tag:
                return str(entry["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def _add_layer(blobs: Path, layer: Path) -> tuple[dict[str, Any], str]:
    plain = hashlib.sha256()
    temporary = blobs / "layer.part"
    with layer.open("rb") as source, temporary.open("wb") as target:
        packed = _Digesting(target)
        # No name and no time in the gzip header, so that the same tar gives the same blob.
        with gzip.GzipFile(filename="", mode="wb", compresslevel=GZIP_LEVEL, fileobj=packed, mtime=0) as zipped:
            while chunk := source.read(CHUNK):
                plain.update(chunk)
                zipped.write(chunk)
    digest = packed.hash.hexdigest()
    temporary.rename(blobs / digest)
    return {"mediaType": LAYER, "digest": f"sha256:{digest}", "size": packed.size}, f"sha256:{plain.hexdigest()}"


def _add_json(blobs: Path, media_type: str, value: dict[str, Any]) -> dict[str, Any]:
    data = _encode(value)
    described = describe(media_type, data)
    (blobs / described["digest"].removeprefix("sha256:")).write_bytes(data)
    return described


def _encode(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("utf-8")
