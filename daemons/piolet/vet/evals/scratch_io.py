"""How fast can a file system be written and read?"""

from __future__ import annotations

import errno
import mmap
import os
import string
import time
from dataclasses import dataclass

from piolet.api import FAIL, USER, Context, Eval, Inconclusive, Verdict, at_least, parameter, worst

_BLOCK = 4 << 20


@dataclass(frozen=True)
class ScratchIo(Eval):
    """Writes one file, syncs it, reads it back around the page cache, and removes it."""

    name = "scratch_io"
    text = "write and read bandwidth of a directory"
    how = "one file written in blocks of 4 MiB and synced, its pages dropped, then read; one stream"
    source = "the file system"
    unit = "GB/s"
    better = "higher"
    loads = frozenset({"disk"})
    timeout_s = 20.0
    effect = 0.3

    path: str = parameter("", text="the directory; ${VARIABLES} of the step are replaced; without it the run's own")
    size: float = parameter(256e6, text="of the file", unit="B", least=_BLOCK)
    min_write: float = parameter(0.0, text="the least write bandwidth", unit="GB/s", least=0)
    min_read: float = parameter(0.0, text="the least read bandwidth", unit="GB/s", least=0)

    def check(self, context: Context) -> Verdict:
        """Measure both; the worse verdict counts, and the write bandwidth is the value for peers."""
        try:
            directory = string.Template(self.path).substitute(context.environ) or context.scratch
        except (KeyError, ValueError):
            raise Inconclusive(f"'{self.path}' names a variable that is not set", USER) from None
        name = os.path.join(directory, f".piolet-vet-{os.uname().nodename}-{os.getpid()}")
        try:
            descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            return Verdict(FAIL, f"cannot create a file in {directory}: {error.strerror}")
        try:
            os.unlink(name)  # whatever happens to this process, nothing is left
            write = self._write(descriptor, context)
            read, cached = self._read(descriptor, context)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            return Verdict(FAIL, f"{directory} is full" if full else f"cannot use {directory}: {error.strerror}")
        finally:
            os.close(descriptor)
        details = {"write": write, "read": read, "read_from_cache": cached, "directory": directory}
        return worst(
            [
                at_least("write bandwidth", write, self.min_write, "GB/s", **details),
                at_least("read bandwidth", read, self.min_read, "GB/s", **details),
            ]
        )

    def _write(self, descriptor: int, context: Context) -> float:
        block = os.urandom(1 << 16) * (_BLOCK >> 16)  # file systems may compress
        started = time.monotonic()
        done = 0
        while done < self.size:
            if not context.remaining():
                raise Inconclusive(f"{done / 1e6:.0f} MB were written when the time was up")
            done += os.write(descriptor, block)
        os.fsync(descriptor)
        return done / (time.monotonic() - started) / 1e9

    def _read(self, descriptor: int, context: Context) -> tuple[float, bool]:
        """Return the bandwidth, and whether it may be that of the page cache."""
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        cached = True
        try:
            os.set_blocking(descriptor, True)
            import fcntl

            fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | os.O_DIRECT)
            cached = False
        except OSError:
            pass  # tmpfs, say: it is nothing but page cache
        started = time.monotonic()
        done = 0
        with mmap.mmap(-1, _BLOCK) as buffer:  # direct reads want aligned memory
            while got := os.preadv(descriptor, [buffer], done):
                done += got
                if not context.remaining():
                    raise Inconclusive(f"{done / 1e6:.0f} MB were read when the time was up")
        return done / (time.monotonic() - started) / 1e9, cached
