"""The job that has a site's scanner look at an image: in the cage, without a network, with the image read-only.

The scanner is any program that takes an OCI layout or a root directory and writes a report of JSON to its standard
output. It may write in the job's scratch directory, which is its home, and read `scanner_data`, where its data base is.
It runs beside the conversion, in a directory of its own: one that was taken over can lie about the image, and no more.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import resource
import subprocess
import tarfile
import tempfile
import time
from typing import Any

from piolet.base.errors import ImageError
from piolet.images import cage, findings
from piolet.images.kept import BLOBS
from piolet.images.manifest import digest_of, machine_architecture

LAYOUT, ROOT = "{layout}", "{root}"
_WRITTEN_MOST = 4 << 30
_SAID = 300
_OCI = "application/vnd.oci.image"


def scan(job: dict[str, Any]) -> dict[str, Any]:
    """`of`, the scratch directory of the conversion, with its blobs and its image, or an image of the store
    → {counts, found, at}."""
    scratch, words = job["scratch"], list(job["scanner"])
    home = os.path.join(scratch, "home")
    os.mkdir(home)
    stored = os.path.isfile(job["of"])
    wants_layout, wants_root = (any(place in word for word in words) for place in (LAYOUT, ROOT))
    if wants_root or stored:
        _unpack(job)
    if wants_layout and stored:
        _layout_of_root(scratch)
    elif wants_layout:
        _layout(scratch, job["of"])
    places = {LAYOUT: scratch, ROOT: os.path.join(scratch, "root"), "{data}": job["scanner_data"]}
    for name, place in places.items():
        words = [word.replace(name, place) for word in words]
    raw = _run(words, job, {"HOME": home, "TMPDIR": home, "XDG_CACHE_HOME": home})
    return {**findings.read(raw), "at": time.time()}


def _layout(scratch: str, other: str) -> None:
    """Make `scratch` an OCI layout of the image whose blobs lie in the scratch directory `other`."""
    os.makedirs(os.path.join(scratch, BLOBS))
    for name in os.listdir(os.path.join(other, BLOBS)):
        os.symlink(os.path.join(other, BLOBS, name), os.path.join(scratch, BLOBS, name))
    with open(os.path.join(other, BLOBS, "manifest.json"), "rb") as file:
        raw = file.read()
    _index(scratch, raw)


def _layout_of_root(scratch: str) -> None:
    """Make `scratch` an OCI layout with one layer, of the root directory that was unpacked there.

    What nobody may read (RHEL's /etc/shadow) is left out: it holds no packages.
    """
    root, blobs = os.path.join(scratch, "root"), os.path.join(scratch, BLOBS)
    os.makedirs(blobs)
    aside = os.path.join(blobs, "layer")
    with tarfile.open(aside, "x") as archive:
        for folder, folders, names in os.walk(root):
            for name in sorted([*names, *folders]):
                _add(archive, os.path.join(folder, name), root)
    with open(aside, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    layer = {"digest": f"sha256:{digest}", "size": os.stat(aside).st_size}
    os.rename(aside, os.path.join(blobs, digest))
    machine = machine_architecture(platform.machine())
    config = {"architecture": machine, "os": "linux", "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]}}
    text = json.dumps(config).encode()
    with open(os.path.join(blobs, digest_of(text).removeprefix("sha256:")), "xb") as out:
        out.write(text)
    parts = {
        "config": {"mediaType": f"{_OCI}.config.v1+json", "digest": digest_of(text), "size": len(text)},
        "layers": [{"mediaType": f"{_OCI}.layer.v1.tar", **layer}],
    }
    _index(scratch, json.dumps({"schemaVersion": 2, "mediaType": f"{_OCI}.manifest.v1+json", **parts}).encode())


def _add(archive: tarfile.TarFile, path: str, root: str) -> None:
    entry = archive.gettarinfo(path, os.path.relpath(path, root))
    if entry is None:
        return
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    if not entry.isreg():
        archive.addfile(entry)
        return
    with contextlib.suppress(PermissionError), open(path, "rb") as file:
        archive.addfile(entry, file)


def _index(scratch: str, raw: bytes) -> None:
    """Write the documents of a layout of the image with the manifest `raw`."""
    digest = digest_of(raw)
    kind = json.loads(raw).get("mediaType") or "application/vnd.oci.image.manifest.v1+json"
    index = {"schemaVersion": 2, "manifests": [{"mediaType": kind, "digest": digest, "size": len(raw)}]}
    documents = {
        "oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
        "index.json": json.dumps(index).encode(),
        os.path.join(BLOBS, digest.removeprefix("sha256:")): raw,
    }
    for name, text in documents.items():
        with open(os.path.join(scratch, name), "xb") as out:
            out.write(text)


def _unpack(job: dict[str, Any]) -> None:
    program = os.path.join(os.path.dirname(job["mksquashfs"]), "unsquashfs")
    root = os.path.join(job["scratch"], "root")
    image = job["of"] if os.path.isfile(job["of"]) else os.path.join(job["of"], "image.sqsh")
    _run(
        [
            program,
            "-no-progress",
            "-quiet",
            "-no-xattrs",
            "-no-exit-code",
            "-d",
            root,
            image,
        ],
        job,
        {},
    )


def _run(words: list[str], job: dict[str, Any], more: dict[str, str]) -> bytes:
    """Run a program and return its output; raises ImageError: it cannot be run, failed, wrote or took too much."""

    def narrow() -> None:
        cage.narrow()
        resource.setrlimit(resource.RLIMIT_FSIZE, (_WRITTEN_MOST, _WRITTEN_MOST))

    name = os.path.basename(words[0])
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", **more}
    with tempfile.TemporaryFile(dir=job["scratch"]) as out, tempfile.TemporaryFile(dir=job["scratch"]) as log:
        try:
            done = subprocess.run(
                words, stdin=subprocess.DEVNULL, stdout=out, stderr=log, env=environment, cwd=job["scratch"],
                preexec_fn=narrow, timeout=job["scan_timeout_s"], check=False,
            )  # fmt: skip
        except OSError as error:
            raise ImageError(f"{name} cannot be run: {error.strerror}") from None
        except subprocess.TimeoutExpired:
            raise ImageError(f"{name} did not end within {job['scan_timeout_s']} s") from None
        if done.returncode:
            log.seek(max(0, log.seek(0, os.SEEK_END) - 4000))
            lines = log.read().decode("utf-8", "replace").strip().splitlines() or ["it said nothing"]
            said = "".join(c if c.isprintable() else " " for c in lines[-1])[:_SAID]
            raise ImageError(f"{name} ended with status {done.returncode}: {said}")
        out.seek(0)
        return out.read(findings.LIMIT_BYTES + 1)
