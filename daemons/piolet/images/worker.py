"""The child process that does an image's heavy work: one job, then it ends.

The job comes as JSON on standard input, answers go as JSON lines to standard output: any number of
{"progress": text}, then one {"result": …} or {"error": …}. It dies with its parent, and the programs
that it starts die with it. Before it reads anything of the image's it goes into a cage (cage.py): it and the programs
can write the job's own scratch folder, and read no other place but where programs and their settings lie.

  look    ask the registry: which manifest is it, and what does the image's configuration say
  copy    fetch the blobs to SCRATCH/blobs/sha256, from a registry or an archive, and check each by its digest
  squash  write SCRATCH/image.sqsh from these
  scan    have the site's scanner look at another job's blobs, or at an image
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import platform
import shutil
import signal
import sys
from collections.abc import Callable
from typing import Any

from piolet.base import logs
from piolet.base.errors import ImageError
from piolet.images import archive, cage, policy, pull, scan
from piolet.images import manifest as documents
from piolet.images.blob import Budget
from piolet.images.failures import from_os, no_memory, to_wire
from piolet.images.kept import BLOBS
from piolet.images.limits import UNPACKED_MOST, bound_memory, bounded_time, processors_of, unpacked_limit
from piolet.images.speaker import Speaker, say
from piolet.images.squash import Squasher, layers_of, merge, squash
from piolet.system import linux

_NICE = 10


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
        if job["kind"] in ("squash", "scan"):
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
        rules = policy.in_force(job["policy"], job["home"])
        readable += (rules, *policy.keys(policy.read(rules))) if rules else ()
    elif job["kind"] == "scan":
        readable += (*cage.program(job["scanner"][0]), *cage.program(job["mksquashfs"]), job["of"])
        readable += (job["scanner_data"],) if job["scanner_data"] else ()
    else:
        readable += cage.program(job["mksquashfs"]) + cage.program(shutil.which("zstd") or "/usr/bin/zstd")
    lenient = job["kind"] == "scan"
    return cage.Cage(job["scratch"], readable, network=remote, lenient=lenient, walls=tuple(job["walls"]))


def _copy(job: dict[str, Any]) -> dict[str, Any]:
    """The image `digest` of `repository`, or the archive at `archive_fd` → {digest, config, signed}, blobs checked."""
    if job["archive_fd"] is not None:
        return _unpack(job)
    wanted, manifest = pull.signed(job, job["digest"]), pull.copy(job)
    config = dataclasses.asdict(_config(manifest, _blobs(job), job["what"]))
    return {"digest": manifest.digest, "config": config, "signed": wanted}


def _blobs(job: dict[str, Any]) -> str:
    return os.path.join(job["scratch"], BLOBS)


def _unpack(job: dict[str, Any]) -> dict[str, Any]:
    """The archive at `archive_fd` → {digest, config, signed}, its blobs checked."""
    what, folder, speaker = job["what"], _blobs(job), Speaker()
    os.mkdir(os.path.dirname(folder))

    def tell(done: int) -> None:
        speaker.tell(f"reading {what}: {done >> 20} MiB")

    # Nobody knows how much will come: no more than the quota has room for, nor than half of what is free.
    space = os.statvfs(job["scratch"])
    rooms = [UNPACKED_MOST, space.f_bavail * space.f_frsize // 2, *([] if job["room"] is None else [job["room"]])]
    manifest = archive.read(job["archive_fd"], job["source"], folder, what, min(rooms), tell)
    config = dataclasses.asdict(_config(manifest, folder, what))
    return {"digest": manifest.digest, "config": config, "signed": ""}


def _config(manifest: documents.Manifest, folder: str, what: str) -> documents.ImageConfig:
    with open(os.path.join(folder, manifest.config.hex), "rb") as file:
        raw = file.read(documents.LIMIT_BYTES + 1)
    return documents.parse_config(raw, what, documents.machine_architecture(platform.machine()))


def _squash(job: dict[str, Any]) -> dict[str, Any]:
    """The blobs → {size, left_out, sha256}, written and synced, within `memory`, `unpack_ratio` and its time."""
    what, folder = job["what"], _blobs(job)
    with open(os.path.join(folder, "manifest.json"), "rb") as file:
        manifest = documents.parse_manifest(file.read(documents.LIMIT_BYTES + 1), what)
    config = _config(manifest, folder, what)
    layers = layers_of(manifest, config, folder)
    speaker = Speaker()

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


def _scan(job: dict[str, Any]) -> dict[str, Any]:
    bound_memory(job["memory"])
    return scan.scan(job)


_JOBS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "look": pull.look,
    "copy": _copy,
    "squash": _squash,
    "scan": _scan,
}


if __name__ == "__main__":
    sys.exit(main())
