"""The files of an OCI archive, to be spoilt by tests."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from tests.support import oci
from tests.support.oci import Entry, file, folder


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass
class Layout:
    """The files of an OCI archive, to be spoilt."""

    documents: dict[str, bytes] = field(default_factory=dict)
    blobs: list[bytes] = field(default_factory=list)

    @classmethod
    def of(cls, entries: list[Entry], *, architecture: str = oci.ARCHITECTURE, compression: str = "gzip") -> Layout:
        """Make the archive of an image of one layer."""
        layer = oci.pack(entries, compression)
        config = json.dumps(
            {"architecture": architecture, "os": "linux", "rootfs": {"type": "layers", "diff_ids": [layer.diff_id]}}
        ).encode()
        manifest = json.dumps(
            {
                "schemaVersion": 2,
                "config": cls.described(config, f"{oci.OCI}.config.v1+json"),
                "layers": [cls.described(layer.data, f"{oci.OCI}.layer.v1.tar")],
            }
        ).encode()
        made = cls({"oci-layout": b'{"imageLayoutVersion": "1.0.0"}'}, [layer.data, config, manifest])
        made.name([cls.described(manifest, f"{oci.OCI}.manifest.v1+json")])
        return made

    @staticmethod
    def described(data: bytes, kind: str, **more: Any) -> dict[str, Any]:
        return {"mediaType": kind, "digest": f"sha256:{digest(data)}", "size": len(data), **more}

    def name(self, manifests: list[dict[str, Any]]) -> None:
        self.documents["index.json"] = json.dumps({"schemaVersion": 2, "manifests": manifests}).encode()

    @property
    def manifest(self) -> bytes:
        return self.blobs[-1]

    def entries(self) -> list[Entry]:
        blobs = [file(f"blobs/sha256/{digest(data)}", data) for data in self.blobs]
        return [
            *(file(name, data) for name, data in self.documents.items()),
            folder("blobs"),
            folder("blobs/sha256"),
            *blobs,
        ]
