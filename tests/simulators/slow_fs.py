"""A file that is slow to read, by FUSE: slow_fs.py FILE BACKING DELAY, as root.

It mounts itself upon the empty file FILE, in mounts of its own, prints "mounted", and from then on FILE of
/proc/PID/root has the bytes of BACKING. Each read waits before it is answered, one after the other as on a server that
has too much to do, for as many seconds as the text of the file DELAY says at that moment. A loop device of it is a disk
whose operations take that long, for the kernel and its counters as well. When this process ends, all of it is gone.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import sys
import time
from pathlib import Path

GETATTR, OPEN, READ, FORGET, RELEASE, INIT, INTERRUPT, BATCH_FORGET = 3, 14, 15, 2, 18, 26, 36, 42
_CLONE_NEWNS, _MS_REC, _MS_PRIVATE, _NOSUID_NODEV = 0x20000, 16384, 1 << 18, 6
_REQUEST_MAX = 1 << 18
_HEADER = struct.Struct("=IIQQ16x")  # of a request: length, operation, number, node
_NOT_CACHED = 1  # FOPEN_DIRECT_IO: each read comes here
_KEPT_S = 3600  # that the attributes are believed


def mount(device: int, file: str) -> None:
    """Mount upon FILE, where nobody but this process, and who enters its mounts, sees it. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)

    def check(result: int, what: str) -> None:
        if result != 0:
            raise OSError(ctypes.get_errno(), what, file)

    check(libc.unshare(_CLONE_NEWNS), "unshare")
    check(libc.mount(b"none", b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None), "mount")
    options = f"fd={device},rootmode=100000,user_id=0,group_id=0"
    flags = ctypes.c_ulong(_NOSUID_NODEV)
    check(libc.mount(b"slow", os.fsencode(file), b"fuse.slow", flags, options.encode()), "mount")


def answer(operation: int, body: bytes, backing: int, delay: Path) -> bytes | None:
    """Return the answer to a request, None where there is to be none. Raises OSError: that is the answer."""
    if operation == INIT:
        return struct.pack("=IIIIHHII", 7, 31, 131072, 0, 16, 12, 131072, 1).ljust(64, b"\0")
    if operation == GETATTR:
        size = os.fstat(backing).st_size
        times = (0,) * 3 + (0,) * 3
        kind = (stat.S_IFREG | 0o400, 1, 0, 0, 0, 4096, 0)
        return struct.pack("=QII6Q3I7I", _KEPT_S, 0, 0, 1, size, -(-size // 512), *times, *kind)
    if operation == OPEN:
        return struct.pack("=QII", 0, _NOT_CACHED, 0)
    if operation == READ:
        _, offset, size = struct.unpack_from("=QQI", body)
        time.sleep(float(delay.read_text("ascii")))
        return os.pread(backing, size, offset)
    if operation in (FORGET, BATCH_FORGET, INTERRUPT):
        return None
    if operation == RELEASE:
        return b""
    raise OSError(errno.ENOSYS, "not done here")


def main(file: str, backing_file: str, delay: str) -> None:
    backing = os.open(backing_file, os.O_RDONLY | os.O_CLOEXEC)
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    mount(device, file)
    while request := os.read(device, _REQUEST_MAX):
        _, operation, number, _ = _HEADER.unpack_from(request)
        error, body = 0, None
        try:
            body = answer(operation, request[_HEADER.size :], backing, Path(delay))
        except OSError as failed:
            error, body = -(failed.errno or errno.EIO), b""
        if body is not None:
            os.write(device, struct.pack("=IiQ", 16 + len(body), error, number) + body)
        if operation == INIT:
            print("mounted", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:4])
