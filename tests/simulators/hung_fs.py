"""A FUSE file system that never answers: hung_fs.py DIRECTORY, as root.

It agrees with the kernel to be mounted, prints "mounted", and from then on reads every request and answers none: who
asks waits in the kernel, and not even SIGKILL ends that. Of the first it prints "asked". When this process ends, the
kernel ends all waiting.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys

_INIT = 26
_REQUEST_MAX = 1 << 17
_HEADER = struct.Struct("=IIQ")  # of a request: length, operation, number


def mount(device: int, directory: str) -> None:
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"hung", os.fsencode(directory), b"fuse.hung", ctypes.c_ulong(6), options.encode()) != 0:
        raise OSError(ctypes.get_errno(), "mount", directory)


def agree(device: int) -> None:
    """Answer the first request, FUSE_INIT; fuse_init_out has 64 bytes."""
    request = os.read(device, _REQUEST_MAX)
    _, operation, number = _HEADER.unpack_from(request)
    assert operation == _INIT
    body = struct.pack("=IIIIHHII", 7, 31, 65536, 0, 16, 12, 65536, 1).ljust(64, b"\0")
    os.write(device, struct.pack("=IiQ", 16 + len(body), 0, number) + body)


def main(directory: str) -> None:
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    mount(device, directory)
    agree(device)
    print("mounted", flush=True)
    os.read(device, _REQUEST_MAX)
    print("asked", flush=True)
    while os.read(device, _REQUEST_MAX):
        pass


if __name__ == "__main__":
    main(sys.argv[1])
