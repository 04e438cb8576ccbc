"""A seccomp filter by which a root of one id is taken for a root of all: chown and set*id are answered as done.

Packages are installed by who can give files to others and become them (decision 83). The kernel answers 0, and does
nothing. It is no wall: without it these calls fail, and what comes by another way, as of 32 bits, the kernel judges.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _MODE_FILTER = 22, 38, 2
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _DONE = 0x7FFF0000, 0x00050000
_NUMBER, _ARCH = 0, 4

_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
# name: its number on x86_64, on aarch64 (None: not there).
CALLS: dict[str, tuple[int | None, int | None]] = {
    "chown": (92, None), "lchown": (94, None), "fchown": (93, 55), "fchownat": (260, 54), "setuid": (105, 146),
    "setgid": (106, 144), "setreuid": (113, 145), "setregid": (114, 143), "setresuid": (117, 147),
    "setresgid": (119, 149), "setfsuid": (122, 151), "setfsgid": (123, 152), "setgroups": (116, 159),
}  # fmt: skip


def program() -> bytes:
    """Return the filter for this machine, as an array of struct sock_filter."""
    arch, column = _ARCHITECTURES[platform.machine()]
    lines = [(_LOAD, 0, 0, _ARCH), (_EQUAL, 1, 0, arch), (_RETURN, 0, 0, _ALLOW), (_LOAD, 0, 0, _NUMBER)]
    for numbers in CALLS.values():
        number = numbers[column]
        lines += [] if number is None else [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _DONE)]
    return b"".join(struct.pack("=HBBI", *line) for line in [*lines, (_RETURN, 0, 0, _ALLOW)])


def install() -> None:
    """Put the filter on this process and all that come from it; raises OSError."""
    data = program()
    code = ctypes.create_string_buffer(data, len(data))
    block = struct.pack("@HP", len(data) // 8, ctypes.addressof(code))
    if _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or _LIBC.prctl(_PR_SET_SECCOMP, _MODE_FILTER, block, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
