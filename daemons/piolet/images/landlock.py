"""Landlock: what a process, and all that come from it, may do with files, whoever owns them.

No privilege is needed. The kernel is asked which rights it knows, and all of them are governed; from version 6 on,
signals and abstract sockets of processes outside are out of reach as well. What it does not govern (modes, times,
names by stat(2), sockets by path) seccomp.py does, or docs/images.md says.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
import struct
from collections.abc import Iterable

_LIBC = ctypes.CDLL(None, use_errno=True)
_CREATE, _ADD, _RESTRICT = 444, 445, 446
_ASK_VERSION, _BENEATH, _PR_SET_NO_NEW_PRIVS = 1, 1, 38
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_MAKE_CHAR, _MAKE_SOCK, _MAKE_BLOCK = 1 << 6, 1 << 9, 1 << 11
_TRUNCATE, _IOCTL_DEV = 1 << 14, 1 << 15
# How many rights on files each version knows, from 1 on; later ones know at least as many.
_RIGHTS = (13, 14, 15, 15, 16)
_SCOPES = 0b11
_ON_A_FILE = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV


def version() -> int:
    """Return the version of Landlock that the kernel has and uses; 0: none."""
    return max(0, int(_LIBC.syscall(_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint(_ASK_VERSION))))


def restrict(writable: Iterable[str], readable: Iterable[str], devices: Iterable[str] = ()) -> None:
    """Leave this process only what lies below these paths; what is not there is passed over. Raises OSError.

    writable   may be read and written, with all that is made below; nothing there can be run
    readable   may be read and run
    devices    may be read and written
    """
    known = version()
    every = (1 << _RIGHTS[min(known, len(_RIGHTS)) - 1]) - 1
    rules = _ruleset(every, known)
    try:
        for path in readable:
            _allow(rules, path, every & (_READ_FILE | _READ_DIR | _EXECUTE))
        for path in devices:
            _allow(rules, path, every & (_READ_FILE | _WRITE_FILE | _TRUNCATE))
        for path in writable:
            _allow(rules, path, every & ~(_EXECUTE | _MAKE_CHAR | _MAKE_BLOCK | _MAKE_SOCK | _IOCTL_DEV))
        _enforce(rules)
    finally:
        os.close(rules)


def nest() -> None:
    """Put this process below the domain that it is in, whose other processes it can then not trace; raises OSError."""
    rules = _ruleset(_MAKE_BLOCK, version())
    try:
        _enforce(rules)
    finally:
        os.close(rules)


def _ruleset(rights: int, known: int) -> int:
    attributes = struct.pack("=QQQ", rights, 0, _SCOPES)[: 8 if known < 4 else 16 if known < 6 else 24]
    made = int(_LIBC.syscall(_CREATE, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint(0)))
    if made < 0:
        raise _error()
    os.set_inheritable(made, False)
    return made


def _allow(rules: int, path: str, rights: int) -> None:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            if not stat.S_ISDIR(os.fstat(place).st_mode):
                rights &= _ON_A_FILE
            rule = struct.pack("=Qi", rights, place)
            if _LIBC.syscall(_ADD, ctypes.c_int(rules), ctypes.c_int(_BENEATH), rule, ctypes.c_uint(0)):
                raise _error()
        finally:
            os.close(place)


def _enforce(rules: int) -> None:
    if _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise _error()
    if _LIBC.syscall(_RESTRICT, ctypes.c_int(rules), ctypes.c_uint(0)):
        raise _error()


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
