"""The jobs that speak to a registry: look at an image, and fetch its blobs. In the cage, in a process of their own.

skopeo does the fetching, and with it what registries.conf, certs.d and policy.json say. It writes an OCI layout whose
blobs are shared (SCRATCH/blobs/sha256, each file named by its digest): what is there already it does not fetch again.
So a fetch that breaks off is taken up where it was, blob by blob: thrice at once, after a while each, and by the next
pull, for which the importer keeps what is whole. Every blob is checked by us, whoever fetched it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import resource
import time
from collections.abc import Callable, Iterable
from typing import Any

from piolet.base import units
from piolet.base.errors import ImageError
from piolet.images import cage, policy
from piolet.images import manifest as documents
from piolet.images.blob import check
from piolet.images.failures import disk_full
from piolet.images.kept import BLOBS
from piolet.images.lease import remove_tree
from piolet.images.registry import Skopeo
from piolet.images.speaker import Speaker, say


def look(job: dict[str, Any]) -> dict[str, Any]:
    """`name` with tag or digest → {digest, size, layers, config}; config is None unless `want_config`."""
    skopeo, what, name = _skopeo(job), job["what"], job["name"]
    architecture = documents.machine_architecture(platform.machine())

    def by_digest(digest: str) -> bytes:
        raw = skopeo.inspect(f"{job['repository']}@{digest}", what)
        _promised(raw, digest, what)
        return raw

    raw = skopeo.inspect(name, what)
    _promised(raw, name, what)
    manifest = documents.parse_manifest(documents.select(raw, by_digest, architecture, what), what)
    config = None
    if job["want_config"]:
        config = dataclasses.asdict(documents.parse_config(_config(skopeo, manifest, job), what, architecture))
    return {"digest": manifest.digest, "size": manifest.size, "layers": len(manifest.layers), "config": config}


def _promised(raw: bytes, name: str, what: str) -> None:
    _, at, digest = name.rpartition("sha256:")
    if at and documents.digest_of(raw) != f"sha256:{digest}":
        raise ImageError(f"the registry's manifest for {what} does not have the digest that was asked for")


def _config(skopeo: Skopeo, manifest: documents.Manifest, job: dict[str, Any]) -> bytes:
    what, name = job["what"], f"{job['repository']}@{manifest.digest}"
    raw = _fetch(job, manifest.config) if manifest.mixed else skopeo.inspect(name, what, config=True)
    if documents.digest_of(raw) != manifest.config.digest:
        raise ImageError(f"the registry's configuration of {what} is not the one that its manifest promises")
    return raw


def signed(job: dict[str, Any], digest: str) -> str:
    """Return which signatures policy.json wants of the image, "GPG" or "sigstore", or '': none."""
    document = policy.read(policy.in_force(job["policy"], job["home"]))
    return policy.required(document, job["repository"], digest)


def copy(job: dict[str, Any]) -> documents.Manifest:
    """Fetch the image `digest` of `repository` to SCRATCH/blobs/sha256: manifest.json, and the blobs, each checked.

    What of it is there already, from an earlier pull, is not fetched again.
    """
    what, folder = job["what"], os.path.join(job["scratch"], BLOBS)
    skopeo = _skopeo(job)
    raw = skopeo.inspect(f"{job['repository']}@{job['digest']}", what)
    _promised(raw, job["digest"], what)
    manifest = documents.parse_manifest(raw, what)
    os.makedirs(folder, exist_ok=True)
    kept = _usable(folder, manifest, what)
    _room(job["scratch"], manifest.size - kept, manifest.size, what)
    meter = _meter(folder, manifest, kept, what)
    most = manifest.size + documents.LIMIT_BYTES
    try:
        _skopeo(job, most).copy(f"docker://{job['repository']}@{job['digest']}", folder, what, meter)
    except ImageError as error:
        if _largest(folder) >= most:
            raise ImageError(f"the registry sends more of {what} than its manifest promises") from None
        # skopeo looks at the policy before it reads the manifest; this one it does not understand.
        if not manifest.mixed or "unsupported docker v2s2 media type" not in error.message:
            raise
        for blob in dict.fromkeys(manifest.layers):
            _fetch(job, blob, os.path.join(folder, blob.hex), meter)
    place = os.path.join(folder, manifest.config.hex)
    if not os.path.exists(place):  # skopeo writes Docker's configuration in OCI's words
        config = _config(skopeo, manifest, job)
        with open(place, "xb") as file:
            file.write(config)
    with open(os.path.join(folder, "manifest.json"), "wb") as file:
        file.write(raw)
    speaker = Speaker()
    blobs = dict.fromkeys((manifest.config, *manifest.layers))
    for number, blob in enumerate(blobs, 1):
        speaker.tell(f"checking {what}: blob {number} of {len(blobs)}")
        check(os.path.join(folder, blob.hex), blob)
    _remove(folder, {"manifest.json", *(blob.hex for blob in blobs)})
    return manifest


def _usable(folder: str, manifest: documents.Manifest, what: str) -> int:
    """Leave in the folder only whole blobs of the manifest; return their bytes."""
    there, speaker = 0, Speaker()
    blobs = {blob.hex: blob for blob in (manifest.config, *manifest.layers)}
    _remove(folder, blobs)
    for name in os.listdir(folder):
        speaker.tell(f"checking what is there of {what}")
        try:
            check(os.path.join(folder, name), blobs[name])
        except ImageError:
            os.unlink(os.path.join(folder, name))
        else:
            there += blobs[name].size
    return there


def _remove(folder: str, but: Iterable[str]) -> None:
    for name in set(os.listdir(folder)).difference(but):
        remove_tree(os.path.join(folder, name))


def _room(scratch: str, missing: int, size: int, what: str) -> None:
    """Raise ImageError unless there is room for what is to come, and the image that is made of it."""
    space = os.statvfs(scratch)
    free = space.f_bavail * space.f_frsize
    if free < missing + size:
        raise ImageError(
            f"there is no space left in the image store: {what} needs {(missing + size) >> 20} MiB, "
            f"{free >> 20} are free",
            disk_full().hint,
        )


def _fetch(
    job: dict[str, Any], blob: documents.Blob, place: str | None = None, tell: Callable[[], None] = lambda: None
) -> bytes:
    from piolet.images import fetch  # few images need it, and it takes a while to load

    access = (job["repository"], job["auth_fd"], job["insecure"], job["timeout_s"], tuple(job["pauses"]), job["home"])
    return fetch.fetch(fetch.Source(*access), blob, job["what"], place, tell)


def _skopeo(job: dict[str, Any], most: int | None = None) -> Skopeo:
    """Return how skopeo is called; no file that it writes has more than `most` bytes: a registry may send for ever."""

    def narrow() -> None:
        cage.narrow()
        if most is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    home = os.path.join(job["scratch"], "home")
    _furnish(home, job["home"])
    return Skopeo(
        job["skopeo"], job["auth_fd"], job["insecure"], job["timeout_s"], home, job["scratch"], narrow,
        tuple(job["pauses"]), lambda text: say({"progress": text}), policy.in_force(job["policy"], job["home"]),
    )  # fmt: skip


def _largest(folder: str) -> int:
    """Return how large the largest file in the folder is."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        return max((entry.stat().st_size for entry in entries), default=0)
    return 0


def _furnish(home: str, of_user: str | None) -> None:
    """Make a home for skopeo that has of the user's own only the settings that are shown in the cage."""
    settings = os.path.join(home, ".config/containers")
    os.makedirs(settings, exist_ok=True)
    for path in cage.user_configuration(of_user) if of_user else ():
        with contextlib.suppress(FileExistsError):
            if os.path.exists(path):
                os.symlink(os.path.realpath(path), os.path.join(settings, os.path.basename(path)))


def _meter(folder: str, manifest: documents.Manifest, kept: int, what: str) -> Callable[[], None]:
    """Return what says, each time that it is called, how much has arrived and how long the rest will take.

    `kept` bytes were there before.
    """
    began, speaker = time.monotonic(), Speaker()
    total, layers = manifest.size, {blob.hex for blob in manifest.layers}

    def tell() -> None:
        done = whole = 0
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    done += entry.stat().st_size
                    whole += entry.name in layers
        speaker.tell(progress(what, min(done, total), total, whole, len(layers), kept, time.monotonic() - began))

    return tell


def progress(what: str, done: int, total: int, whole: int, layers: int, kept: int, spent: float) -> str:
    """Return the line that a user sees: `done` of `total` bytes after `spent` seconds, of which `kept` cost none."""
    new = done - kept
    left = f", about {units.age(spent * (total - done) / new)} left" if new > 0 and done < total and spent > 2 else ""
    return f"pulling {what}: {done / 2**20:.1f} of {total / 2**20:.1f} MiB, {whole} of {layers} layers{left}"
