"""Runs a program as on a kernel that refuses a system call: refuse_call.py WHAT ERRNO PROGRAM ARGUMENT...

WHAT is one of
    idmap          mount_setattr of one mount, as idmapped mounts are made: RHEL 9 says EPERM, others before 6.2 EINVAL
    mount_setattr  every call of it: before Linux 5.12 it is ENOSYS
    xattr          setting attributes of files: a tmpfs before Linux 6.6 has no user.* ones, EOPNOTSUPP
A seccomp filter answers; it sees a call's registers and not what they point at, so `idmap` goes by the flag
AT_RECURSIVE, which that call of ours has not.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys

_SYS_MOUNT_SETATTR = 442
_SYS_SETXATTR = {"x86_64": 188, "aarch64": 5}
_AT_RECURSIVE = 0x8000
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2
_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06  # BPF_LD|W|ABS, JMP|JEQ|K, JMP|JSET|K, RET|K
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000


def main(what: str, number: int, command: list[str]) -> None:
    any_flag = _AT_RECURSIVE if what == "idmap" else 0
    call = _SYS_SETXATTR[platform.machine()] if what == "xattr" else _SYS_MOUNT_SETATTR
    program = [
        (_LOAD, 0, 0, 0),  # seccomp_data.nr
        (_EQUAL, 0, 3, call),
        (_LOAD, 0, 0, 32),  # args[2], its lower half
        (_ANY_BIT, 1, 0, any_flag),
        (_RETURN, 0, 0, _ERRNO | number),
        (_RETURN, 0, 0, _ALLOW),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in program))
    block = struct.pack("@HP", len(program), ctypes.addressof(code))
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, block) != 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    os.execv(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1], getattr(errno, sys.argv[2]), sys.argv[3:])
