"""Runs a program as on a machine whose user.max_user_namespaces is 0: deny_userns.py PROGRAM ARGUMENT...

A seccomp filter answers unshare(CLONE_NEWUSER) with ENOSPC, as that kernel does. The real setting is of the whole
machine and would harm everybody on it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys

_SYS_UNSHARE = {"x86_64": 272, "aarch64": 97, "ppc64le": 282}
_CLONE_NEWUSER = 0x10000000
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2
_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06  # BPF_LD|W|ABS, JMP|JEQ|K, JMP|JSET|K, RET|K
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000


def main(command: list[str]) -> None:
    program = [
        (_LOAD, 0, 0, 0),  # seccomp_data.nr
        (_EQUAL, 0, 3, _SYS_UNSHARE[platform.machine()]),
        (_LOAD, 0, 0, 16),  # args[0], its lower half
        (_ANY_BIT, 0, 1, _CLONE_NEWUSER),
        (_RETURN, 0, 0, _ERRNO | errno.ENOSPC),
        (_RETURN, 0, 0, _ALLOW),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in program))
    block = struct.pack("@HP", len(program), ctypes.addressof(code))
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, block) != 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    os.execv(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
