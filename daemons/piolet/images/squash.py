"""Layers to SquashFS: merge them in memory, feed one tar to mksquashfs.

Two passes over the layers. The first unpacks each blob as a stream and learns the tree;
the second streams the content that is left to mksquashfs. Nothing is unpacked to a file system.
The same layers always give the same bytes: names in order, times from the layers, no other source.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import signal
import stat
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO

from piolet.base.errors import ImageError
from piolet.images.blob import Budget, LayerStream
from piolet.images.failures import disk_full, no_memory
from piolet.images.limits import UNPACKED_MOST, TooSlow
from piolet.images.manifest import ImageConfig, Manifest
from piolet.images.tarstream import BLOCK, TarReader, header
from piolet.images.tree import MEMORY_LIMIT, Inode, Tree

GROUP = 1
DATA_BLOCK = 128 << 10
"""The group of every file; their owner is 0."""
_LEVELS = {"zstd": ("-Xcompression-level", "3")}


@dataclass(frozen=True)
class Squasher:
    """How SquashFS files are written: program, compression, what is called before it runs, caches (MiB), processors.

    `once`: content that is there twice is stored once, for which all files of one size are compared with each other.
    """

    program: str
    compression: str
    before_exec: Callable[[], None] | None = None
    caches: int = 512
    processors: int = 2
    once: bool = True


@dataclass(frozen=True)
class ImageLayer:
    """A layer's place: `number` counts from 1, `digest` names it in messages."""

    number: int
    digest: str
    path: str


def layers_of(manifest: Manifest, config: ImageConfig, folder: str) -> list[ImageLayer]:
    """Return the layers below `folder`, where each blob is named by its hexadecimal digest.

    The caller has checked the blobs. Raises ImageError: the configuration counts other layers.
    """
    if len(manifest.layers) != len(config.diff_ids):
        raise ImageError(
            f"the image has {len(manifest.layers)} layers, but its configuration speaks of {len(config.diff_ids)}"
        )
    return [
        ImageLayer(number, blob.digest, os.path.join(folder, blob.hex))
        for number, blob in enumerate(manifest.layers, 1)
    ]


def merge(
    layers: list[ImageLayer],
    config: ImageConfig,
    tell: Callable[[str], None],
    budget: Budget | None = None,
    memory_limit: int = MEMORY_LIMIT,
) -> Tree:
    """Return the tree that `layers` make; raises ImageError naming the layer that is at fault."""
    tree, budget = Tree(memory_limit=memory_limit), budget or Budget(UNPACKED_MOST)
    for layer, diff_id in zip(layers, config.diff_ids, strict=True):
        tell(f"reading layer {layer.number} of {len(layers)}")
        tree.begin_layer(layer.number)
        try:
            with LayerStream(layer.path, budget) as stream:
                for ordinal, member in enumerate(TarReader(stream).members()):
                    tree.add(member, ordinal)
                unpacked = stream.digest()
        except TooSlow:
            raise  # no layer's fault
        except ImageError as error:
            raise _in_layer(layer, len(layers), error) from None
        if unpacked != diff_id:
            raise _in_layer(layer, len(layers), ImageError("its content is not what the configuration promises"))
    return tree


def squash(tree: Tree, layers: list[ImageLayer], out: str, how: Squasher, tell: Callable[[str], None]) -> int:
    """Write `tree`, whose contents are in `layers`, to the new SquashFS file `out`, synced.

    Returns how many device nodes, FIFOs and sockets were left out.

    Raises ImageError: mksquashfs failed (with its last lines), the disk is full.
    """
    left_out = 0

    def feed(pipe: IO[bytes]) -> None:
        nonlocal left_out
        left_out = _feed(tree, layers, pipe, tell)

    write(out, os.path.dirname(out), how, (tree.root.mode, tree.root.mtime), feed)
    return left_out


def write(
    out: str,
    folder: str,
    how: Squasher,
    root: tuple[int, int],
    feed: Callable[[IO[bytes]], None],
    inherited: tuple[int, ...] = (),
) -> None:
    """Write what `feed` writes to a pipe, a tar, to `out`, where nothing of worth is, as SquashFS, synced.

    folder     where mksquashfs may write what it says
    root       mode and time of the root directory
    inherited  descriptors that mksquashfs has, by which `out` may be called: /proc/self/fd/N

    Raises ImageError as `squash`, and what `feed` raises.
    """
    # Two ids, root's and a group of another number, so that a table of them can stand for any user and any group:
    # with one, whoever's gid is not the number of their uid could write nothing (decision 70).
    command = [how.program, "-", out, "-tar", "-noappend", "-all-root", "-force-gid", str(GROUP), "-no-xattrs"]
    # A kernel mounts no SquashFS whose blocks are smaller than its pages, and those of aarch64 may have 64 KiB.
    command += ["-comp", how.compression, "-b", str(DATA_BLOCK)]
    command += [*_LEVELS.get(how.compression, ()), "-mkfs-time", "0", "-noI"]
    command += ["-root-mode", f"{stat.S_IMODE(root[0]):o}", "-mem", f"{how.caches}M"]
    command += ["-processors", str(how.processors), "-no-progress", "-quiet"]
    command += [] if how.once else ["-no-duplicates"]
    with tempfile.TemporaryFile(dir=folder) as log:
        try:
            child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
                pass_fds=inherited,
                preexec_fn=how.before_exec,
            )
        except OSError as error:
            raise ImageError(f"cannot run {how.program}: {error.strerror}", "install squashfs-tools") from None
        assert child.stdin is not None
        try:
            feed(child.stdin)
            child.stdin.close()
            status = child.wait()
        except BrokenPipeError:
            status = child.wait() or 1
        finally:
            child.kill()
            child.wait()
        if status != 0:
            raise _failure(status, log)
    _seal(out, root[1])


def _feed(tree: Tree, layers: list[ImageLayer], pipe: IO[bytes], tell: Callable[[str], None]) -> int:
    with contextlib.suppress(OSError):  # the user may have too many pipes already; a small one works as well
        fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, 1 << 20)
    write = pipe.write
    for path, directory in tree.directories():
        write(header(path, "dir", directory.mode, directory.mtime))
    contents: dict[int, list[Inode]] = {layer.number: [] for layer in layers}
    symlinks: list[Inode] = []
    specials = total = 0
    for inode in tree.inodes():
        if inode.kind == "file":
            contents[inode.layer].append(inode)
            total += inode.size
        elif inode.kind == "symlink":
            symlinks.append(inode)
        elif inode.kind == "special":
            specials += 1
    done = 0
    for layer in layers:
        wanted = contents.pop(layer.number)
        if not wanted:
            continue
        wanted.sort(key=lambda inode: inode.ordinal, reverse=True)
        tell(f"writing SquashFS: {done * 100 // max(1, total)} %, layer {layer.number} of {len(layers)}")
        with LayerStream(layer.path, None) as stream:
            reader = TarReader(stream)
            for ordinal, member in enumerate(reader.members()):
                if ordinal != wanted[-1].ordinal:
                    continue
                here = wanted[-1]
                while wanted and wanted[-1] is here:  # it is there once for each name
                    wanted.pop()
                    done += member.size
                write(header(here.path, "file", here.mode, here.mtime, member.size))
                reader.copy(member, write)
                write(bytes(-member.size % BLOCK))
                _write_links(here, write)
                if not wanted:
                    break
                tell(f"writing SquashFS: {done * 100 // max(1, total)} %, layer {layer.number} of {len(layers)}")
    for inode in symlinks:
        if inode.parent is not None:
            for name in inode.names:
                write(header(name, "symlink", 0o777, inode.mtime, 0, inode.target))
            inode.parent = inode.links = None  # a link with two names was found twice
    write(bytes(2 * BLOCK))
    return specials


def _write_links(inode: Inode, write: Callable[[bytes], object]) -> None:
    first = inode.path
    for name in itertools.islice(inode.names, 1, None):
        write(header(name, "link", inode.mode, inode.mtime, 0, first))


def _failure(status: int, log: IO[bytes]) -> ImageError:
    log.seek(max(0, log.seek(0, os.SEEK_END) - 2000))
    lines = [line.strip() for line in log.read().decode("utf-8", "replace").splitlines() if line.strip()]
    if any("No space left on device" in line for line in lines):
        return disk_full()
    if any("out of memory" in line.lower() for line in lines):
        return no_memory()
    if status < 0:
        lines.append(f"ended by {signal.Signals(-status).name}")
    said = "; ".join(lines[-3:]) or f"exit status {status}"
    return ImageError(f"mksquashfs failed: {said}")


def _seal(path: str, root_mtime: int) -> None:
    """Check that the file is a SquashFS of its full length, give its root directory a time, and sync it.

    mksquashfs 4.5 gives the root of a tar the time of day, whatever -root-time says, and no image
    would come out twice the same. The table of inodes is not compressed (-noI), so the four bytes can
    be set: an inode's time is 8 bytes behind its start, which the superblock names by the place of a
    metadata block and the place inside that block.
    """
    with open(path, "r+b") as file:
        start = file.read(96)
        length = int.from_bytes(start[40:48], "little")
        if start[:4] != b"hsqs" or length > os.fstat(file.fileno()).st_size:
            raise ImageError("mksquashfs wrote a file that is not a whole SquashFS file system")
        root, table = int.from_bytes(start[32:40], "little"), int.from_bytes(start[64:72], "little")
        block, offset = table + (root >> 16), (root & 0xFFFF) + 8
        stamp = root_mtime.to_bytes(4, "little")
        while stamp:
            file.seek(block)
            held = int.from_bytes(file.read(2), "little")
            if not held & 0x8000:
                raise ImageError("mksquashfs compressed the table of inodes, although told not to")
            held &= 0x7FFF
            piece = stamp[: max(0, held - offset)]
            file.seek(block + 2 + offset)
            file.write(piece)
            stamp = stamp[len(piece) :]
            block, offset = block + 2 + held, max(0, offset - held)
        file.flush()
        os.fsync(file.fileno())


def _in_layer(layer: ImageLayer, count: int, error: ImageError) -> ImageError:
    return ImageError(f"layer {layer.number} of {count} ({layer.digest[:19]}) is unusable: {error.message}", error.hint)
