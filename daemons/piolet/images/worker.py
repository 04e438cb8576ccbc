"""The child process that does an image's heavy work: one job, then it ends.

The job comes as JSON on standard input, answers go as JSON lines to standard output: any number of
{"progress": text}, then one {"result": …} or {"error": …}. It dies with its parent, and the programs
that it starts die with it. Before it reads anything of the image's it goes into a cage (cage.py): it and the programs
can write the job's own scratch folder, and read no other place but where programs and their settings lie.

  look    ask the registry: which manifest is it, and what does the image's configuration say
  copy    fetch the blobs to SCRATCH/blobs, from a registry or an archive, and check each by its digest
  squash  write SCRATCH/image.sqsh from SCRATCH/blobs
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import platform
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from piolet.base import logs
from piolet.base.errors import ImageError
from piolet.images import archive, cage
from piolet.images import manifest as documents
from piolet.images.blob import Budget, check
from piolet.images.failures import disk_full, from_os, no_memory, to_wire
from piolet.images.limits import UNPACKED_MOST, bound_memory, bounded_time, processors_of, unpacked_limit
from piolet.images.registry import Skopeo
from piolet.images.squash import Squasher, layers_of, merge, squash
from piolet.system import linux

_INTERVAL_S = 0.5
_NICE = 10


class _Speaker:
    """Progress to the parent, at most twice a second."""

    def __init__(self) -> None:
        self._next = 0.0

    def tell(self, text: str) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _INTERVAL_S
            say({"progress": text})


def say(message: dict[str, Any]) -> None:
    """Write one line to the parent."""
    os.write(1, json.dumps(message).encode() + b"\n")


def main() -> int:
    """Do the job on standard input; returns 0 even when the job failed, as the answer says so."""
    linux.die_with_parent(signal.SIGKILL)
    job = json.loads(sys.stdin.buffer.read())
    if os.getppid() != job["parent"]:
        return 1  # the parent ended before the kernel was told to watch it
    os.umask(0o077)
    standing: tuple[str, ...] = ()
    status = 0
    store = os.path.dirname(os.path.dirname(job.get("scratch", "")))
    try:
        job["scratch"] = os.path.realpath(job["scratch"])
        if job["kind"] == "squash":
            os.nice(_NICE)  # nobody's step is to wait for somebody's conversion
        standing = _cage(job).enter()
        say({"result": _JOBS[job["kind"]](job)})
    except ImageError as error:
        say({"error": to_wire(error)})
    except OSError as error:
        say({"error": to_wire(from_os(error, store))})
    except MemoryError:
        say({"error": to_wire(no_memory())})
    except Exception:  # standard error is the service's log, and what failed may be anybody's bytes
        logs.configure("piolet-imaged: %(message)s")
        logging.getLogger("piolet-imaged").exception("a fault in the process that was importing %s", job["what"])
        status = 1
    if "namespaces" not in standing and os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)  # nothing that a program left behind stays; the answer is with the parent
    return status


def _cage(job: dict[str, Any]) -> cage.Cage:
    """Return where the job is done: only what speaks to a registry has a network."""
    readable: tuple[str, ...] = ()
    remote = job["kind"] == "look" or (job["kind"] == "copy" and job["archive_fd"] is None)
    if remote:
        readable += cage.program(job["skopeo"]) + cage.certificates()
        readable += cage.user_configuration(job["home"]) if job["home"] else ()
    else:
        readable += cage.program(job["mksquashfs"]) + cage.program(shutil.which("zstd") or "/usr/bin/zstd")
    return cage.Cage(job["scratch"], readable, network=remote, walls=tuple(job["walls"]))


def _skopeo(job: dict[str, Any], most: int | None = None) -> Skopeo:
    """Return how skopeo is called; no file that it writes has more than `most` bytes: a registry may send for ever."""

    def narrow() -> None:
        cage.narrow()
        if most is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    home = os.path.join(job["scratch"], "home")
    _furnish(home, job["home"])
    return Skopeo(job["skopeo"], job["auth_fd"], job["insecure"], job["timeout_s"], home, job["scratch"], narrow)


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


def _look(job: dict[str, Any]) -> dict[str, Any]:
    """`name` with tag or digest → {digest, size, layers, config}; config is None unless `want_config`."""
    skopeo, what, name = _skopeo(job), job["what"], job["name"]
    architecture = documents.machine_architecture(platform.machine())
    raw = skopeo.inspect(name, what)
    _promised(raw, name, what)
    repository = job["repository"]
    chosen = documents.choose(raw, architecture, what)
    if chosen is not None:
        raw = skopeo.inspect(f"{repository}@{chosen}", what)
        _promised(raw, chosen, what)
    manifest = documents.parse_manifest(raw, what)
    config = None
    if job["want_config"]:
        text = skopeo.inspect(f"{repository}@{manifest.digest}", what, config=True)
        if documents.digest_of(text) != manifest.config.digest:
            raise ImageError(f"the registry's configuration of {what} is not the one that its manifest promises")
        config = dataclasses.asdict(documents.parse_config(text, what, architecture))
    return {"digest": manifest.digest, "size": manifest.size, "layers": len(manifest.layers), "config": config}


def _promised(raw: bytes, name: str, what: str) -> None:
    _, at, digest = name.rpartition("sha256:")
    if at and documents.digest_of(raw) != f"sha256:{digest}":
        raise ImageError(f"the registry's manifest for {what} does not have the digest that was asked for")


def _copy(job: dict[str, Any]) -> dict[str, Any]:
    """`source` (a transport and a place) → {digest, config}, the blobs checked."""
    what, folder = job["what"], os.path.join(job["scratch"], "blobs")
    size: int | None = job["size"]
    if job["archive_fd"] is not None:
        return _unpack(job, folder)
    space = os.statvfs(job["scratch"])
    free = space.f_bavail * space.f_frsize
    if size is not None and free < 2 * size:
        raise ImageError(
            f"there is no space left in the image store: {what} needs {2 * size >> 20} MiB, {free >> 20} are free",
            disk_full().hint,
        )
    meter = _meter(folder, size, job["layers"], _Speaker(), what)
    most = None if size is None else size + documents.LIMIT_BYTES
    try:
        _skopeo(job, most).copy(job["source"], folder, what, meter)
    except ImageError:
        if most is not None and _largest(folder) >= most:
            raise ImageError(f"the registry sends more of {what} than its manifest promises") from None
        raise
    with open(os.path.join(folder, "manifest.json"), "rb") as file:
        manifest = documents.parse_manifest(file.read(documents.LIMIT_BYTES + 1), what)
    if job["digest"] not in (None, manifest.digest):
        raise ImageError(f"the registry's manifest of {what} changed while it was pulled", "try again")
    speaker = _Speaker()
    for number, blob in enumerate((manifest.config, *dict.fromkeys(manifest.layers))):
        speaker.tell(f"checking {what}: blob {number + 1} of {len(manifest.layers) + 1}")
        check(os.path.join(folder, blob.hex), blob)
    return {"digest": manifest.digest, "config": dataclasses.asdict(_config(manifest, folder, what))}


def _unpack(job: dict[str, Any], folder: str) -> dict[str, Any]:
    """The archive at `archive_fd` → {digest, config}, its blobs checked."""
    what, speaker = job["what"], _Speaker()

    def tell(done: int) -> None:
        speaker.tell(f"reading {what}: {done >> 20} MiB")

    # Nobody knows how much will come: no more than the quota has room for, nor than half of what is free.
    space = os.statvfs(job["scratch"])
    rooms = [UNPACKED_MOST, space.f_bavail * space.f_frsize // 2, *([] if job["room"] is None else [job["room"]])]
    manifest = archive.read(job["archive_fd"], job["source"], folder, what, min(rooms), tell)
    return {"digest": manifest.digest, "config": dataclasses.asdict(_config(manifest, folder, what))}


def _config(manifest: documents.Manifest, folder: str, what: str) -> documents.ImageConfig:
    with open(os.path.join(folder, manifest.config.hex), "rb") as file:
        raw = file.read(documents.LIMIT_BYTES + 1)
    return documents.parse_config(raw, what, documents.machine_architecture(platform.machine()))


def _squash(job: dict[str, Any]) -> dict[str, Any]:
    """SCRATCH/blobs → {size, left_out, sha256}, written and synced, within `memory`, `unpack_ratio` and its time."""
    what, folder = job["what"], os.path.join(job["scratch"], "blobs")
    with open(os.path.join(folder, "manifest.json"), "rb") as file:
        manifest = documents.parse_manifest(file.read(documents.LIMIT_BYTES + 1), what)
    config = _config(manifest, folder, what)
    layers = layers_of(manifest, config, folder)
    speaker = _Speaker()

    def tell(text: str) -> None:
        speaker.tell(f"converting {what}: {text}")

    memory: int = job["memory"]
    bound_memory(memory)
    packed = sum(os.stat(path).st_size for path in {layer.path for layer in layers})
    budget = Budget(unpacked_limit(packed, job["unpack_ratio"]), packed)
    out = os.path.join(job["scratch"], "image.sqsh")
    caches, processors = min(512, memory // 4), processors_of(job["processors"])
    how = Squasher(job["mksquashfs"], job["compression"], cage.narrow, caches, processors)
    with bounded_time(lambda: packed + budget.spent, job["conversion_rate"]):
        tree = merge(layers, config, tell, budget, memory << 20)
        left_out = squash(tree, layers, out, how, tell)
        with open(out, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return {"size": os.stat(out).st_size, "left_out": left_out, "sha256": sha256}


def _meter(folder: str, total: int | None, layers: int, speaker: _Speaker, what: str) -> Callable[[], None]:
    """Return what says, each time that it is called, how much has arrived and how long the rest will take."""
    began = time.monotonic()

    def tell() -> None:
        done = whole = 0
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    done += entry.stat().st_size
                    whole += len(entry.name) == 64
        if not total:
            speaker.tell(f"reading {what}: {done >> 20} MiB")
            return
        spent = time.monotonic() - began
        left = f", about {spent * (total - done) / done:.0f} s left" if 0 < done < total and spent > 2 else ""
        done = min(done, total)
        speaker.tell(
            f"pulling {what}: {done / 2**20:.1f} of {total / 2**20:.1f} MiB, "
            f"{min(whole, layers)} of {layers} layers{left}"
        )

    return tell


_JOBS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {"look": _look, "copy": _copy, "squash": _squash}


if __name__ == "__main__":
    sys.exit(main())
