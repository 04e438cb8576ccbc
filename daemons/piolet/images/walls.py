"""A user, mount and process namespace with little in it: the part of the cage that takes names away.

The root there is a small file system in memory: the scratch directory, writable; what is named readable, read-only;
a few devices; and, where the kernel allows it, a /proc of the new process namespace. Nothing else of the machine has
a name. What is bound keeps its path, so that messages are true inside as well.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import signal
import struct
from collections.abc import Sequence
from typing import NoReturn

from piolet.system import linux

_LIBC = ctypes.CDLL(None, use_errno=True)
_NEWNS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = 0x20000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _BIND, _MOVE, _REC, _PRIVATE = 1, 2, 4, 8, 4096, 8192, 16384, 1 << 18
_DETACH, _RECURSIVE, _MOUNT_SETATTR = 2, 0x8000, 442
_LINKS = 40
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")


def enter(scratch: str, readable: Sequence[str], *, network: bool) -> str | None:
    """Go on in new namespaces, as their first process; None: this process is in them.

    The processes that were before wait for its end, holding nothing, and end with it; it ends with them. A text says
    why the kernel refuses; this process is then as it was. Needs a process with one thread.
    """
    report, ours = os.pipe2(os.O_CLOEXEC)
    outside = os.fork()
    if outside == 0:
        os.close(report)
        _go(scratch, readable, network, ours)
        os.close(ours)
        return None
    os.close(ours)
    with os.fdopen(report, "rb") as pipe:
        said = pipe.read()
    if not said:
        _wait_for(outside)
    os.waitpid(outside, 0)
    return said.decode("utf-8", "replace")


def _go(scratch: str, readable: Sequence[str], network: bool, report: int) -> None:
    """Make the namespaces and return as the first process in them; where that fails, say so at `report` and end."""
    what = "new namespaces"
    try:
        linux.die_with_parent(signal.SIGKILL)
        _unshare(network)
        what = "a process in new namespaces"
        alive, ours = os.pipe2(os.O_CLOEXEC)
        first = os.fork()
        if first:
            os.close(report)
            _wait_for(first, ours)
        os.close(ours)
        linux.die_with_parent(signal.SIGKILL)
        if select.select([alive], [], [], 0)[0]:
            os._exit(1)  # the parent ended before the kernel was told to watch it
        os.close(alive)
        what = "a root of its own"
        _root(scratch, readable)
    except OSError as error:
        os.write(report, f"{what}: {error.strerror or error}".encode())
        os._exit(1)


def _wait_for(child: int, keep: int | None = None) -> NoReturn:
    """End as `child` ends, keeping nothing open but `keep`."""
    if keep:
        os.dup2(keep, 0)
    os.closerange(1 if keep else 0, os.sysconf("SC_OPEN_MAX"))
    while True:
        with contextlib.suppress(InterruptedError):
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            os._exit(status if status >= 0 else 128 - status)


def _unshare(network: bool) -> None:
    uid, gid = os.geteuid(), os.getegid()
    flags = _NEWUSER | _NEWNS | _NEWPID | _NEWIPC
    # Without network nothing can be connected to anyway, as seccomp denies sockets; so this is a second wall.
    if network or _LIBC.unshare(flags | _NEWNET):
        _check(_LIBC.unshare(flags))
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)


def _root(scratch: str, readable: Sequence[str]) -> None:
    _mount(None, "/", None, _REC | _PRIVATE)
    place = os.open(scratch, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    # Mounted over the scratch directory, as every machine has that one; the descriptor still means what is below.
    _mount("tmpfs", scratch, "tmpfs", _NOSUID | _NODEV, b"mode=755,size=1m,nr_inodes=4096")
    shown: list[str] = []
    for path in readable:
        _show(scratch, path, shown)
    for device in DEVICES:
        if os.path.exists(device):
            os.makedirs(scratch + "/dev", exist_ok=True)
            _touch(scratch + device)
            _mount(device, scratch + device, None, _BIND)
            _harden(scratch + device, _NOSUID | _NOEXEC)
    os.makedirs(scratch + scratch, exist_ok=True)
    _mount(f"/proc/self/fd/{place}", scratch + scratch, None, _BIND)
    _harden(scratch + scratch, _NOSUID | _NODEV | _NOEXEC)
    os.close(place)
    os.mkdir(scratch + "/proc")
    try:
        _mount("proc", scratch + "/proc", "proc", _NOSUID | _NODEV | _NOEXEC)
    except PermissionError:
        # Parts of /proc are covered here, as in containers and under systemd's ProtectKernelTunables. The old one
        # tells of other processes what everybody may know; the user namespace keeps the rest shut.
        _mount("/proc", scratch + "/proc", None, _BIND | _REC)
        _harden(scratch + "/proc", _RDONLY | _NOSUID | _NODEV | _NOEXEC, _RECURSIVE)
    _harden(scratch, _RDONLY | _NOSUID | _NODEV)
    os.chdir(scratch)
    if _LIBC.pivot_root(b".", b"."):
        if ctypes.get_errno() != errno.EINVAL:
            raise _error()
        _mount(".", "/", None, _MOVE)  # the root is the kernel's first, as on nodes without a disk
        os.chroot(".")
    else:
        _check(_LIBC.umount2(b".", _DETACH))
    os.chdir(scratch)


def _show(root: str, path: str, shown: list[str]) -> None:
    """Have `path` below `root`, read-only, by the same name: links on the way stay links."""
    if not os.path.exists(path):
        return
    left, at, links = path.split("/"), "", 0
    while left:
        name = left.pop(0)
        if name in ("", "."):
            continue
        if name == "..":
            at = os.path.dirname(at)
            continue
        here = f"{at}/{name}"
        if os.path.islink(here) and links < _LINKS:
            links += 1
            target = os.readlink(here)
            with contextlib.suppress(FileExistsError):
                os.symlink(target, root + here)
            left = target.split("/") + left
            at = "" if target.startswith("/") else at
            continue
        at = here
        with contextlib.suppress(FileExistsError):
            if os.path.isdir(at):
                os.mkdir(root + at, 0o755)
            else:
                _touch(root + at)
    if any(at == other or at.startswith(other + "/") for other in shown) or not at:
        return
    _mount(at, root + at, None, _BIND | _REC)
    _harden(root + at, _RDONLY | _NOSUID | _NODEV, _RECURSIVE)
    shown.append(at)


def _touch(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))


def _harden(path: str, attributes: int, flags: int = 0) -> None:
    block = struct.pack("=QQQQ", attributes, 0, 0, 0)
    size = ctypes.c_size_t(len(block))
    _check(_LIBC.syscall(_MOUNT_SETATTR, ctypes.c_int(-100), path.encode(), ctypes.c_uint(flags), block, size))


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: bytes | None = None) -> None:
    what = [os.fsencode(text) if text is not None else None for text in (source, target, kind)]
    _check(_LIBC.mount(*what, ctypes.c_ulong(flags), options))


def _check(result: int) -> None:
    if result:
        raise _error()


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
