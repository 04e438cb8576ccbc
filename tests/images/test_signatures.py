"""policy.json: images that are not signed as it says are refused, and who looks sees which had to be."""

from __future__ import annotations

import base64
import contextlib
import http.server
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from piolet.images import policy

from tests.images.conftest import ALICE, Site, needs_root
from tests.support import oci
from tests.support.registry import Registry, reply, sham

needs_gpg = pytest.mark.skipif(shutil.which("gpg") is None, reason="gpg is not installed")
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")


def test_scopes() -> None:
    def of(kind: str) -> list[dict[str, str]]:
        return [{"type": kind}]

    digest = "sha256:" + "a" * 64
    document: dict[str, Any] = {
        "default": of("sigstoreSigned"),
        "transports": {
            "docker": {
                "quay.io": of("signedBy"),
                "quay.io/free": of("insecureAcceptAnything"),
                f"quay.io/free/app@{digest}": [*of("signedBy"), *of("sigstoreSigned")],
                "*.example.org": of("signedBy"),
            }
        },
    }
    assert policy.required(document, "quay.io/team/app", digest) == "GPG"
    assert policy.required(document, "quay.io/free/other", digest) == ""
    assert policy.required(document, "quay.io/free/app", digest) == "GPG, sigstore"
    assert policy.required(document, "a.b.example.org:5000/x", digest) == "GPG"
    assert policy.required(document, "other.io/x", digest) == "sigstore"
    document["transports"]["docker"][""] = of("reject")
    assert policy.required(document, "other.io/x", digest) == ""
    torn: list[dict[str, Any]] = [{}, {"default": 7}, {"transports": []}, {"transports": {"docker": 7}}]
    for odd in [*torn, {"default": [7, {"type": []}]}]:
        assert policy.required(odd, "a/b", digest) == ""


def test_keys_that_a_policy_names() -> None:
    document = {
        "default": [{"type": "signedBy", "keyPath": "/a", "signedIdentity": {"type": "matchExact"}}],
        "transports": {
            "docker": {"x": [{"type": "sigstoreSigned", "fulcio": {"caPath": "/b"}, "keyPaths": ["/c", 7]}]}
        },
    }
    assert list(policy.keys(document)) == ["/a", "/b", "/c"]
    assert list(policy.keys({"default": [{"keyPath": 7}]})) == []


@pytest.fixture
def home(room: Path) -> Iterator[Path]:
    """A user's home with a store; what podman's pages call the user's own configuration is there."""
    path = room / "home"
    (path / ".config/containers/registries.d").mkdir(parents=True)
    yield path


def configure(home: Path, registry: Registry, requirement: dict[str, Any], settings: dict[str, Any]) -> dict[str, str]:
    """Write policy.json and registries.d; return the environment of a pull to the user's own store."""
    place = home / ".config/containers"
    rules = {
        "default": [{"type": "insecureAcceptAnything"}],
        "transports": {"docker": {f"{registry.address}/signed": [requirement]}},
    }
    (place / "policy.json").write_text(json.dumps(rules))
    text = "".join(f"    {key}: {json.dumps(value)}\n" for key, value in settings.items())
    (place / "registries.d/test.yaml").write_text(f"docker:\n  {json.dumps(registry.address)}:\n{text}" if text else "")
    if os.geteuid() == 0:
        subprocess.run(["chown", "-R", f"{ALICE}:{ALICE}", home], check=True)
    return {"HOME": str(home), "EDF_IMAGESTORE": str(home / "images")}


def listed(site: Site, home: dict[str, str]) -> dict[str, str]:
    """Return the column SIGNED of `piolet image list` by name."""
    lines = site.piolet(ALICE, "image", "list", **home).stdout.splitlines()
    at = lines[0].index("SIGNED")
    return {line.split()[0].rpartition("/")[2]: line[at:].split("  ")[0].strip() for line in lines[1:]}


@contextlib.contextmanager
def gnupg(folder: Path) -> Iterator[dict[str, str]]:
    """Give the environment of a GnuPG with one key, whose agent ends with the block."""
    folder.mkdir(mode=0o700)
    there = {"GNUPGHOME": str(folder), "PATH": os.environ["PATH"]}
    made = [
        "gpg",
        "--batch",
        "--passphrase",
        "",
        "--quick-gen-key",
        "signer@example.org",
        "default",
        "default",
        "never",
    ]
    subprocess.run(made, env=there, check=True, capture_output=True)
    try:
        yield there
    finally:
        subprocess.run(["gpgconf", "--kill", "all"], env=there, check=False)


@needs_root()
@needs_gpg
def test_a_gpg_signature(site: Site, registry: Registry, image: Path, room: Path, home: Path) -> None:
    signed, plain = registry.push(image, "signed/app:1"), registry.push(image, "free/app:1")
    oci.build(room / "other", [[oci.file("other")]])
    unsigned = registry.push(room / "other", "signed/other:1")
    with gnupg(room / "gnupg") as there:
        found = subprocess.run(["gpg", "--list-keys", "--with-colons"], env=there, capture_output=True, text=True)
        fingerprint = next(line.split(":")[9] for line in found.stdout.splitlines() if line.startswith("fpr"))
        key = subprocess.run(["gpg", "--export"], env=there, capture_output=True, check=True).stdout
        (home / "signers.gpg").write_bytes(key)
        sign = [str(image / "manifest.json"), signed, fingerprint, "-o", str(room / "signature")]
        subprocess.run(["skopeo", "standalone-sign", *sign], env=there, check=True, capture_output=True)
    signature, digest = (room / "signature").read_bytes(), oci.digest((image / "manifest.json").read_bytes())

    def lookaside(handler: http.server.BaseHTTPRequestHandler) -> None:
        if handler.path.endswith(f"/signed/app@{digest.replace(':', '=')}/signature-1"):
            return reply(handler, 200, signature, "application/octet-stream")
        return reply(handler, 404, b"", "text/plain")

    with sham(lookaside) as address:
        requirement = {
            "type": "signedBy", "keyType": "GPGKeys", "keyPath": str(home / "signers.gpg"),
            "signedIdentity": {"type": "matchRepository"},
        }  # fmt: skip
        more = configure(
            home, registry, requirement, {"sigstore": f"http://{address}", "lookaside": f"http://{address}"}
        )
        assert "error" not in site.ask(ALICE, signed, **more)
        assert "error" not in site.ask(ALICE, plain, **more), "nothing is asked of it"
        refused = site.ask(ALICE, unsigned, **more)
        assert "signature was required" in refused["error"] and "policy.json asks for a signature" in refused["hint"]
        signature = signature[:-20] + bytes(20)
        shutil.rmtree(home / "images")
        assert "error" in site.ask(ALICE, signed, **more), "a signature that was changed"
    # The image is one file, and stays what it was checked to be.
    assert "error" not in site.ask(ALICE, plain, **more)
    assert listed(site, more) == {"app:1": "-"}


@needs_root()
@needs_openssl
def test_a_sigstore_signature(site: Site, registry: Registry, image: Path, room: Path, home: Path) -> None:
    signed, digest = registry.push(image, "signed/app:1"), oci.digest((image / "manifest.json").read_bytes())
    key, public = room / "key.pem", home / "cosign.pub"
    subprocess.run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key], check=True)
    subprocess.run(["openssl", "ec", "-in", key, "-pubout", "-out", public], check=True, capture_output=True)
    more = configure(
        home, registry,
        {"type": "sigstoreSigned", "keyPath": str(public), "signedIdentity": {"type": "matchRepository"}},
        {"use-sigstore-attachments": True},
    )  # fmt: skip
    assert "error" in site.ask(ALICE, signed, **more), "it has no signature yet"
    payload = json.dumps(
        {
            "critical": {
                "identity": {"docker-reference": f"{registry.address}/signed/app"},
                "image": {"docker-manifest-digest": digest},
                "type": "cosign container image signature",
            },
            "optional": None,
        }
    ).encode()
    (room / "payload").write_bytes(payload)
    made = subprocess.run(
        ["openssl", "dgst", "-sha256", "-sign", key, room / "payload"], capture_output=True, check=True
    ).stdout
    attach(registry, room, digest, payload, base64.b64encode(made).decode())
    pulled = site.ask(ALICE, signed, **more)
    if "sigstore disabled" in pulled.get("error", ""):
        pytest.skip(f"this skopeo was built without sigstore: {pulled['error']}")
    assert "error" not in pulled, pulled
    assert listed(site, more) == {"app:1": "sigstore"}


def attach(registry: Registry, room: Path, digest: str, payload: bytes, signature: str) -> None:
    """Put a signature where cosign puts it: an image beside the image, called after its digest."""
    oci.build(room / "attached", [oci.Packed(payload, oci.digest(payload), "")])
    registry.push(room / "attached", "signed/app:attached")
    manifest = json.loads((room / "attached/manifest.json").read_bytes())
    (layer,) = manifest["layers"]
    layer["mediaType"] = "application/vnd.dev.cosign.simplesigning.v1+json"
    layer["annotations"] = {"dev.cosignproject.cosign/signature": signature}
    tag = f"{digest.replace(':', '-')}.sig"
    registry.put_manifest("signed/app", tag, json.dumps(manifest).encode(), f"{oci.OCI}.manifest.v1+json")


@needs_root()
def test_the_sites_policy(site: Site, registry: Registry, image: Path, room: Path) -> None:
    """The service's own file; also for an image that skopeo does not read."""
    rules = {
        "default": [{"type": "reject"}],
        "transports": {"docker": {f"{registry.address}/free": [{"type": "insecureAcceptAnything"}]}},
    }
    (room / "policy.json").write_text(json.dumps(rules))
    site.stop()
    site.settings["policy"] = str(room / "policy.json")
    site.start()
    assert "error" not in site.ask(ALICE, registry.push(image, "free/app:1"))
    oci.build(room / "docker", [[oci.file("a")]], docker=True)
    registry.push(room / "docker", "else/app:1")
    manifest = json.loads((room / "docker/manifest.json").read_bytes())
    manifest["layers"][0]["mediaType"] = "application/vnd.oci.image.layer.v1.tar+gzip"
    kind = f"{oci.DOCKER}.distribution.manifest.v2+json"
    registry.put_manifest("else/app", "mixed", json.dumps(manifest).encode(), kind)
    for name in ("else/app:1", "else/app:mixed"):
        refused = site.ask(ALICE, f"{registry.address}/{name}")
        assert "rejected" in refused["error"] and "takes no image from there" in refused["hint"], refused
    assert len(site.images()) == 1 and site.leftovers() == []
