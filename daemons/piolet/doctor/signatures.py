"""Signatures: whether the skopeo that is here can check what policy.json asks for: tried, not read off a version."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from piolet.doctor.findings import BAD, OK, Finding, Machine, ask
from piolet.images import policy

# Any key will do: no signature is good, and the question is whether one is looked at.
_KEY = """-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE/OplD36b+A/jKqLNQxYUvukdUVq+
iOg9lqy2M+v/Somw7IbuMd+FGX4PnYmteS8loqvsWg7AFdlOwKO0+b2zPw==
-----END PUBLIC KEY-----
"""
_CONFIG = b'{"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}}'
_OCI = "application/vnd.oci.image"
_DISABLED = ("sigstore disabled", "nknown policy requirement type", "sigstore is not supported")


def signatures(machine: Machine) -> Iterator[Finding]:
    """Whether images that have to be signed can be pulled at all."""
    if not machine.here("piolet-imaged"):
        return
    path = policy.in_force(machine.config.images.policy, None)
    asked = policy.kinds(policy.read(path))
    if not asked:
        return
    text = f"{path} asks for signatures by {' and '.join(asked)}"
    if "sigstore" in asked and (why := _disabled(machine)) is not None:
        hint = "install a skopeo that was built with sigstore (that of Debian 12 was not), or sign with GPG"
        yield Finding("signatures", BAD, f"{text}, and skopeo refuses each such image: {why}", hint)
    else:
        yield Finding("signatures", OK, text)


def _disabled(machine: Machine) -> str | None:
    """Return what skopeo says where it cannot check sigstore's signatures; None: it can, or does not answer."""
    with tempfile.TemporaryDirectory(prefix="piolet-doctor-") as folder:
        _write(Path(folder))
        words = ["--policy", f"{folder}/policy.json", "copy", f"dir:{folder}/image", f"dir:{folder}/out"]
        done = ask(machine, machine.config.images.skopeo, *words)
    if done is None:
        return None  # the check of programs says so
    return next((sign for sign in _DISABLED if sign in done.stderr), None)


def _write(folder: Path) -> None:
    """Write an image with a signature, and a policy that asks for one."""
    image = folder / "image"
    image.mkdir()
    digest = hashlib.sha256(_CONFIG).hexdigest()
    config = {"mediaType": f"{_OCI}.config.v1+json", "digest": f"sha256:{digest}", "size": len(_CONFIG)}
    manifest = {"schemaVersion": 2, "mediaType": f"{_OCI}.manifest.v1+json", "config": config, "layers": []}
    signature = {
        "mimeType": "application/vnd.dev.cosign.simplesigning.v1+json",
        "payload": "e30=",
        "annotations": {"dev.cosignproject.cosign/signature": "bm9uZQ=="},
    }
    rules = {"default": [{"type": "sigstoreSigned", "keyPath": os.fspath(folder / "key.pem")}]}
    (image / digest).write_bytes(_CONFIG)
    (image / "version").write_text("Directory Transport Version: 1.1\n")
    (image / "manifest.json").write_text(json.dumps(manifest))
    (image / "signature-1").write_bytes(b"\0sigstore-json\n" + json.dumps(signature).encode())
    (folder / "key.pem").write_text(_KEY)
    (folder / "policy.json").write_text(json.dumps(rules))
