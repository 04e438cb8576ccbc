"""A container's root as an image: a SquashFS file, or an archive to bring in like any other.

What the image that it had says of itself stays: of an archive in its configuration, of a file in the form that enroot
has for it (enroot.py). It runs as the user, who may read all of that root, and bounds the time as a conversion does.
"""

from __future__ import annotations

import json
import os
import platform
import stat
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import IO

from piolet.base import units
from piolet.base.errors import ImageError
from piolet.images import enroot, newfile, saved, squash
from piolet.images.limits import bounded_time
from piolet.images.manifest import machine_architecture
from piolet.images.saved import Count, Root
from piolet.images.settings import ImagesConfig
from piolet.images.tarstream import BLOCK, header

# Names that archives of images may have in them; nobody looks what these would be the digests of.
_LAYER, _CONFIG = f"{'0' * 64}.tar", f"{'0' * 64}.json"
_CACHES = 512
_OFTEN = 64 << 20


@dataclass(frozen=True)
class Base:
    """What an image says of itself."""

    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    workdir: str | None = None
    labels: dict[str, str] = field(default_factory=dict)


def to_file(
    root: Root, base: Base, path: str, config: ImagesConfig, tell: Callable[[str], None], *, force: bool
) -> tuple[Count, list[str]]:
    """Write the root to the new SquashFS file at `path`; return what was written, and sentences about what was not.

    force  a file of the caller's there is replaced

    Raises ImageError: nothing is left then, and what was there is there.
    """
    written, warnings = enroot.write(base.env, base.entrypoint, base.workdir, path)
    root = replace(root, given={**root.given, **written})
    count = Count()
    processors = len(os.sched_getaffinity(0))
    # A million small files are compared with each other for ten minutes, and nobody waits so long for one.
    how = squash.Squasher(config.mksquashfs, config.compression, None, _CACHES, processors, once=False)

    def feed(pipe: IO[bytes]) -> None:
        saved.write(root, saved.Pipe(pipe.fileno()), count, _telling(tell))

    with newfile.opened(path, replace=force) as file, bounded_time(lambda: count.work, config.conversion_rate):
        squash.write(f"/proc/self/fd/{file}", tempfile.gettempdir(), how, _of_directory(root), feed, (file,))
    return count, warnings


def to_archive(root: Root, base: Base, file: int, config: ImagesConfig, tell: Callable[[str], None]) -> Count:
    """Write the root to the open and empty `file` as an archive of one layer, as `docker save` does.

    Raises ImageError, and OSError.
    """
    count = Count()
    os.lseek(file, BLOCK, os.SEEK_SET)  # the layer's header comes when its length is known
    layer = saved.Hashed(file)
    with bounded_time(lambda: count.work, config.conversion_rate):
        saved.write(root, layer, count, _telling(tell))
        digest = layer.end()
    os.pwrite(file, header(_LAYER.encode(), "file", 0o644, 0, layer.size), 0)
    settings = {"Env": list(base.env), "Entrypoint": list(base.entrypoint) or None, "Labels": base.labels or None}
    document = {
        "architecture": machine_architecture(platform.machine()),
        "os": "linux",
        "config": {**settings, "WorkingDir": base.workdir or ""},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    os.lseek(file, BLOCK + layer.size, os.SEEK_SET)
    with os.fdopen(os.dup(file), "wb") as out:
        out.write(bytes(-layer.size % BLOCK))
        for name, value in ((_CONFIG, document), ("manifest.json", [{"Config": _CONFIG, "Layers": [_LAYER]}])):
            data = json.dumps(value).encode()
            out.write(header(name.encode(), "file", 0o644, 0, len(data)) + data + bytes(-len(data) % BLOCK))
        out.write(bytes(2 * BLOCK))
    return count


def check(root: Root) -> None:
    """Raise ImageError if nothing can have been changed there."""
    if os.fstatvfs(root.directory).f_flag & os.ST_RDONLY:
        raise ImageError("there is nothing to save: the container's root is read-only", "set writable = true")


def _of_directory(root: Root) -> tuple[int, int]:
    status = os.stat(".", dir_fd=root.directory)
    return stat.S_IMODE(status.st_mode), max(0, int(status.st_mtime))


def _telling(tell: Callable[[str], None]) -> Callable[[Count], None]:
    said = 0

    def told(count: Count) -> None:
        nonlocal said
        if count.bytes >= said + _OFTEN:
            said = count.bytes
            tell(f"saving: {units.size(count.bytes)}, {count.names} files")

    return told
