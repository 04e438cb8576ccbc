"""Blobs of an image: check them, and read a layer's tar out of its compression as a stream.

gzip and plain tars are read here, zstd by the `zstd` program, in the cage of the process that starts it.
The kind is told by the first bytes, as media types are often wrong. Refused: a digest or size that is not the
manifest's, truncated streams, trailing rubbish, more unpacked bytes than the budget holds.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import zlib
from collections.abc import Callable
from typing import Protocol

from piolet.base import units
from piolet.base.errors import ImageError
from piolet.images.cage import narrow
from piolet.images.manifest import Blob

_INPUT = 256 * 1024
_OUTPUT = 1024 * 1024
_GZIP, _ZSTD, _XZ, _BZIP = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ", b"BZh"


class Budget:
    """How many unpacked bytes an image may still have, whose layers have `packed` bytes."""

    def __init__(self, limit: int, packed: int | None = None) -> None:
        self._limit = limit
        self._packed = packed
        self.spent = 0

    def spend(self, count: int) -> None:
        """Take `count` bytes; raises ImageError when the image is larger than the limit."""
        self.spent += count
        if self.spent > self._limit:
            size = "" if self._packed is None else f" for layers of {units.size(self._packed)}"
            raise ImageError(
                f"the image has more than {units.size(self._limit)} of unpacked content, the limit{size}",
                "the holes of sparse files count; an administrator can raise [images] unpack_ratio",
            )


def check(path: str, blob: Blob) -> None:
    """Raise ImageError unless the file at `path` is `blob`, by size and by digest."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if size != blob.size:
                raise ImageError(f"the blob {blob.digest[:19]} has {size} bytes, but its manifest says {blob.size}")
            while chunk := file.read(_OUTPUT):
                digest.update(chunk)
    except FileNotFoundError:
        raise ImageError(f"the blob {blob.digest[:19]} is missing") from None
    if digest.hexdigest() != blob.hex:
        raise ImageError(f"the blob {blob.digest[:19]} does not have the content that its digest promises")


class Unpacked(Protocol):
    """Unpacked bytes: a piece at each call, none at the end."""

    def read(self) -> bytes: ...
    def close(self) -> None: ...


class _Plain:
    def __init__(self, fd: int, raw: Callable[[int, int], bytes] = os.read) -> None:
        self._fd = fd
        self._raw = raw

    def read(self) -> bytes:
        return self._raw(self._fd, _OUTPUT)

    def close(self) -> None:
        os.close(self._fd)


class _Gzip(_Plain):
    """One or more gzip members, zero padding allowed behind the last."""

    def __init__(self, fd: int, raw: Callable[[int, int], bytes] = os.read) -> None:
        super().__init__(fd, raw)
        self._inflate = zlib.decompressobj(31)
        self._rest = b""

    def read(self) -> bytes:
        while True:
            if self._inflate.eof:
                rest = (self._inflate.unused_data or self._raw(self._fd, _INPUT)).lstrip(b"\0")
                while not rest:
                    chunk = self._raw(self._fd, _INPUT)
                    if not chunk:
                        return b""
                    rest = chunk.lstrip(b"\0")
                self._inflate = zlib.decompressobj(31)
                self._rest = rest
            chunk = self._rest or self._raw(self._fd, _INPUT)
            if not chunk:
                raise ImageError("its gzip stream is truncated")
            try:
                out = self._inflate.decompress(chunk, _OUTPUT)
            except zlib.error:
                raise ImageError("its gzip stream is damaged") from None
            self._rest = self._inflate.unconsumed_tail
            if out:
                return out


class _Zstd:
    def __init__(self, fd: int) -> None:
        try:
            self._child = subprocess.Popen(
                ["zstd", "-dcq", "--memory=256MB"],
                stdin=fd,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
                preexec_fn=narrow,
            )
        except FileNotFoundError:
            raise ImageError("it is compressed with zstd, and the program zstd is not installed") from None
        finally:
            os.close(fd)

    def read(self) -> bytes:
        assert self._child.stdout is not None
        out: bytes = os.read(self._child.stdout.fileno(), _OUTPUT)
        if not out and self._child.wait() != 0:
            raise ImageError("its zstd stream is damaged or truncated")
        return out

    def close(self) -> None:
        self._child.kill()
        self._child.wait()
        if self._child.stdout is not None:
            self._child.stdout.close()


def unpacked(fd: int, magic: bytes, raw: Callable[[int, int], bytes] = os.read) -> Unpacked:
    """Return what is in the file at `fd`, which begins with `magic`, and which is closed with what is returned.

    `raw` reads it in the place of os.read, unless it is compressed with zstd.
    """
    if magic.startswith(_GZIP):
        return _Gzip(fd, raw)
    if magic.startswith(_ZSTD):
        return _Zstd(fd)
    if magic.startswith((_XZ, _BZIP)):
        os.close(fd)
        raise ImageError("it is compressed with xz or bzip2, which images may not use")
    return _Plain(fd, raw)


def needs_a_file(magic: bytes) -> bool:
    """Return whether what begins with `magic` is read by a program, from a file's start."""
    return magic.startswith(_ZSTD)


class LayerStream:
    """The unpacked bytes of one layer, in order. `digest()` is known when all were read.

    Of the file at `path`, or of any source.
    """

    def __init__(self, path: str | Unpacked, budget: Budget | None) -> None:
        if isinstance(path, str):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self._source = unpacked(fd, os.pread(fd, 6, 0))
        else:
            self._source = path
        self._budget = budget
        # Hashing is for the first pass, the one that has a budget; the second reads the same private file.
        self._hash = hashlib.sha256() if budget is not None else None
        self._buffer = b""
        self._at = 0

    def __enter__(self) -> LayerStream:
        return self

    def __exit__(self, *_: object) -> None:
        self._source.close()

    def charge(self, count: int) -> None:
        """Take `count` bytes from the budget that the stream does not hold: the holes of sparse files."""
        if self._budget is not None:
            self._budget.spend(count)

    def read(self, count: int) -> bytes:
        """Return exactly `count` bytes, or fewer at the end of the stream."""
        end = self._at + count
        if end <= len(self._buffer):
            piece = self._buffer[self._at : end]
            self._at = end
            return piece
        pieces: list[bytes] = []

        def keep(piece: bytes) -> None:
            pieces.append(piece)

        self.pass_on(count, keep)
        return b"".join(pieces)

    def pass_on(self, count: int, take: Callable[[bytes], object]) -> int:
        """Hand the next `count` bytes to `take`, in pieces; return how many there were."""
        left = count
        while left > 0:
            if self._at == len(self._buffer) and not self._fill():
                break
            piece = self._buffer[self._at : self._at + left]
            self._at += len(piece)
            left -= len(piece)
            take(piece)
        return count - left

    def digest(self) -> str:
        """Read what is left and return the digest of everything, `sha256:…`."""
        while self._fill():
            pass
        assert self._hash is not None
        return "sha256:" + self._hash.hexdigest()

    def _fill(self) -> bool:
        self._buffer, self._at = self._source.read(), 0
        if self._budget is not None and self._hash is not None:
            self._budget.spend(len(self._buffer))
            self._hash.update(self._buffer)
        return bool(self._buffer)
