"""The system calls of Linux that Python's standard library lacks, by ctypes.

Each raises OSError with the name of what it was working on. Numbers are those of <asm/unistd.h>; from 424 on they
are the same on every architecture. Needs Linux 5.12 (mount_setattr).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import socket
import struct
from collections.abc import Callable

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REC, MS_PRIVATE, MS_SLAVE, MS_SHARED = 0x4000, 1 << 18, 1 << 19, 1 << 20
MNT_DETACH = 2

MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC = 1, 2, 4, 8
MOUNT_ATTR_IDMAP = 0x00100000

_AT_EMPTY_PATH, _AT_RECURSIVE = 0x1000, 0x8000
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH, _MOVE_MOUNT_T_SYMLINKS, _MOVE_MOUNT_T_EMPTY_PATH = 0x04, 0x10, 0x40
_AT_FDCWD = -100
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NAME, _PR_SET_SECUREBITS, _PR_SET_NO_NEW_PRIVS = 1, 4, 15, 28, 38
_PR_SET_KEEPCAPS, _PR_SET_CHILD_SUBREAPER = 8, 36
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 47, 2
_CAPABILITY_VERSION, _CAP_SYS_ADMIN = 0x20080522, 21
CAP_DAC_READ_SEARCH = 2
_SECBIT_NO_SETUID_FIXUP = 4
_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_CLOSE_RANGE, _SYS_MOUNT_SETATTR = 428, 429, 436, 442
_SYS_KEYCTL, _KEYCTL_JOIN_SESSION_KEYRING = {"x86_64": 250, "aarch64": 219, "ppc64le": 271}, 1
_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41, "ppc64le": 203}

_BUFFERS = ((32, socket.SO_SNDBUF), (33, socket.SO_RCVBUF))  # SO_SNDBUFFORCE and SO_RCVBUFFORCE, and the ordinary ones

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def unshare(flags: int) -> None:
    """Leave the namespaces that `flags` name for new ones."""
    _check(_libc.unshare(flags), "unshare")


def setns(descriptor: int, kind: int) -> None:
    """Join the namespace behind `descriptor`; `kind` is its CLONE_NEW* flag."""
    _check(_libc.setns(descriptor, kind), "setns")


def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """mount(2); `data` is the file system's own options."""
    _check(
        _libc.mount(
            os.fsencode(source),
            os.fsencode(target),
            None if kind is None else kind.encode(),
            ctypes.c_ulong(flags),
            None if data is None else os.fsencode(data),
        ),
        target,
    )


def umount(target: str, flags: int = MNT_DETACH) -> None:
    """umount2(2), lazily by default: never waits for a user of the mount."""
    _check(_libc.umount2(os.fsencode(target), flags), target)


def pivot_root(new_root: str, put_old: str) -> None:
    """pivot_root(2)."""
    number = _SYS_PIVOT_ROOT[platform.machine()]
    _check(_libc.syscall(number, os.fsencode(new_root), os.fsencode(put_old)), new_root)


def clone_tree(path: str, recursive: bool = True) -> int:
    """Return a descriptor of a detached copy of the mount at `path` (open_tree with OPEN_TREE_CLONE)."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | (_AT_RECURSIVE if recursive else 0)
    return _check(_libc.syscall(_SYS_OPEN_TREE, _AT_FDCWD, os.fsencode(path), flags), path)


def clone_file(directory: int, name: str) -> int:
    """Return a descriptor of a detached copy of the mount at `name` in an open directory, and of nothing below it."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC
    return _check(_libc.syscall(_SYS_OPEN_TREE, directory, os.fsencode(name), flags), name)


def attach_file(tree: int, directory: int, name: str) -> None:
    """Attach the detached mount `tree` at `name` in an open directory, following no link."""
    number = _libc.syscall(_SYS_MOVE_MOUNT, tree, b"", directory, os.fsencode(name), _MOVE_MOUNT_F_EMPTY_PATH)
    _check(number, name)


def attach(tree: int, path: str) -> None:
    """Attach the detached mount `tree` at `path`, following symbolic links (move_mount)."""
    flags = _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_SYMLINKS
    _check(_libc.syscall(_SYS_MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(path), flags), path)


def attach_at(tree: int, place: int) -> None:
    """Attach the detached mount `tree` at what the descriptor `place` was opened of."""
    flags = _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH
    _check(_libc.syscall(_SYS_MOVE_MOUNT, tree, b"", place, b"", flags), "move_mount")


def set_mount_attributes(
    tree: int, attributes: int, *, user_ns: int | None = None, propagation: int = 0, recursive: bool = True
) -> None:
    """Set MOUNT_ATTR_* on the mount that `tree` is the root of; with `user_ns` map its ids by that namespace."""
    if user_ns is not None:
        attributes |= MOUNT_ATTR_IDMAP
    # Bytes, as ctypes makes a type for each buffer: a circle, and the monitor's garbage collector is off.
    block = struct.pack("=QQQQ", attributes, 0, propagation, user_ns or 0)
    flags = _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    _check(_libc.syscall(_SYS_MOUNT_SETATTR, tree, b"", flags, block, ctypes.c_size_t(32)), "mount_setattr")


def close_all_but(keep: set[int]) -> None:
    """Close every descriptor from 3 on that is not in `keep`."""
    first = 3
    for descriptor in [*sorted(keep), 0xFFFFFFFF]:
        if descriptor > first:
            _check(_libc.syscall(_SYS_CLOSE_RANGE, first, descriptor - 1, 0), "close_range")
        first = max(first, descriptor + 1)


def message_pair(size: int) -> tuple[socket.socket, socket.socket]:
    """Return a SOCK_SEQPACKET pair with room for messages of `size` bytes; less room without CAP_NET_ADMIN."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        for force, ordinary in _BUFFERS:
            try:
                end.setsockopt(socket.SOL_SOCKET, force, size)
            except PermissionError:
                end.setsockopt(socket.SOL_SOCKET, ordinary, size)
    return ends


def _prctl(option: int, value: int, what: str) -> None:
    zero = ctypes.c_ulong(0)
    _check(_libc.prctl(option, ctypes.c_ulong(value), zero, zero, zero), what)


def die_with_parent(signal_number: int) -> None:
    """Get `signal_number` when the parent ends. A change of user clears it: call this afterwards."""
    _prctl(_PR_SET_PDEATHSIG, signal_number, "PR_SET_PDEATHSIG")


def become_subreaper() -> None:
    """Be handed every descendant whose parent ends (PR_SET_CHILD_SUBREAPER)."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1, "PR_SET_CHILD_SUBREAPER")


def set_name(name: str) -> None:
    """Give this process a name of at most 15 bytes, as `ps -o comm` shows it."""
    _check(_libc.prctl(_PR_SET_NAME, ctypes.c_char_p(name.encode()), 0, 0, 0), "PR_SET_NAME")


def not_dumpable() -> None:
    """Keep others with the same uid from looking into or tracing this process."""
    _prctl(_PR_SET_DUMPABLE, 0, "PR_SET_DUMPABLE")


def no_new_privileges() -> None:
    """From here on, no exec gives a privilege that the process lacks."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1, "PR_SET_NO_NEW_PRIVS")


def keep_capabilities() -> None:
    """Keep the capabilities over a change of user, until the next exec or setns."""
    _prctl(_PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP, "PR_SET_SECUREBITS")


def leave_keyring() -> None:
    """Have a new session keyring: whoever holds a process of ours must not hold the keys of its session, too."""
    number = _SYS_KEYCTL.get(platform.machine())
    if number is not None and _libc.syscall(number, _KEYCTL_JOIN_SESSION_KEYRING, None) < 0:
        error = ctypes.get_errno()
        # Where the call is not to be had, or may not be made, keys cannot be had either.
        if error not in (errno.ENOSYS, errno.EPERM, errno.EACCES):
            raise OSError(error, os.strerror(error), "session keyring")


def _keep_only(capability: int) -> None:
    """Give up every capability but this one. Raises OSError."""
    header = struct.pack("=Ii", _CAPABILITY_VERSION, 0)
    bit = 1 << capability
    # Of each half of the bits: effective, permitted, inheritable.
    _check(_libc.capset(header, struct.pack("=6I", bit, bit, 0, 0, 0, 0)), "capset")


def keep_over_exec(capability: int) -> None:
    """Give up every capability but this one, which the next program has as well. Raises OSError."""
    header = struct.pack("=Ii", _CAPABILITY_VERSION, 0)
    bit = 1 << capability
    _check(_libc.capset(header, struct.pack("=6I", bit, bit, bit, 0, 0, 0)), "capset")
    raised, zero = ctypes.c_ulong(capability), ctypes.c_ulong(0)
    _check(_libc.prctl(_PR_CAP_AMBIENT, ctypes.c_ulong(_PR_CAP_AMBIENT_RAISE), raised, zero, zero), "PR_CAP_AMBIENT")


def become(uid: int, gid: int, groups: list[int], *, administrator: bool = False, keyring: bool = True) -> None:
    """Become this user for good, and prove that there is no way back.

    With `keyring` root's session keyring is left, for which a process that has time has called `leave_keyring` before.

    With `administrator` CAP_SYS_ADMIN stays, and nothing else, until a new user namespace takes it away: read nothing
    of the user's before that. The process is not dumpable then.

    Raises PermissionError when there is a way back (never seen; the proof is the point).
    """
    if administrator:
        _prctl(_PR_SET_KEEPCAPS, 1, "PR_SET_KEEPCAPS")
    if keyring:
        leave_keyring()  # as root: a user whose quota of keys is used up would keep root's
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    if os.getresuid() != (uid,) * 3 or os.getresgid() != (gid,) * 3:
        raise PermissionError("the change of user did not take")
    if administrator:
        not_dumpable()
        _keep_only(_CAP_SYS_ADMIN)
        _prctl(_PR_SET_KEEPCAPS, 0, "PR_SET_KEEPCAPS")
    if uid == 0:
        return
    ways_back: list[Callable[[], None]] = [
        lambda: os.setresuid(0, 0, 0),
        lambda: os.setresgid(0, 0, 0),
        lambda: os.setgroups([0]),
    ]
    for way_back in ways_back:
        try:
            way_back()
        except PermissionError:
            continue
        raise PermissionError("root can be taken back after the change of user")
