"""OCI archives, hostile ones: a real image's files, with entries put in front, or in a blob's place."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support import oci


def layout(image: Path) -> dict[str, bytes]:
    """Return the files of an OCI layout of the image that `oci.build` wrote, by name."""
    manifest = (image / "manifest.json").read_bytes()
    entry = {"mediaType": f"{oci.OCI}.manifest.v1+json", "digest": oci.digest(manifest), "size": len(manifest)}
    files = {
        "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
        "index.json": json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode(),
        f"blobs/sha256/{oci.digest(manifest)[7:]}": manifest,
    }
    for path in image.iterdir():
        if len(path.name) == 64:
            files[f"blobs/sha256/{path.name}"] = path.read_bytes()
    return files


def image_files(layers: Sequence[Sequence[oci.Entry] | bytes | oci.Packed]) -> dict[str, bytes]:
    """Return the files of an OCI layout with these layers."""
    with tempfile.TemporaryDirectory() as folder:
        oci.build(Path(folder) / "image", layers)
        return layout(Path(folder) / "image")


def tar(
    files: Mapping[str, bytes], first: Sequence[oci.Entry] = (), instead: Mapping[str, oci.Entry] | None = None
) -> bytes:
    """Return the archive: `first`, the directories, the files, those named in `instead` being that entry."""
    entries = [*first, oci.folder("blobs"), oci.folder("blobs/sha256")]
    entries += [(instead or {}).get(name) or oci.file(name, data) for name, data in files.items()]
    return oci.tar(entries)
