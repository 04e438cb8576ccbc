"""User namespaces: those that map the ids of an image's files to a user's, and what keeps users from having any."""

from __future__ import annotations

import errno
import os
import socket

from piolet.system import children, linux

_CACHED_MAX = 256
_MADE_S = 5.0
_NOBODY = 65534

# What keeps users from making one, and what lets them; the second is Debian's, the third Ubuntu's from 24.04 on.
SETTINGS = (
    ("user.max_user_namespaces", "0", "15000"),
    ("kernel.unprivileged_userns_clone", "0", "1"),
    ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
)


def hint() -> str:
    """Return what an administrator does where a user namespace was refused: about the setting that is in the way."""
    for key, bad, good in SETTINGS:
        try:
            with open(f"/proc/sys/{key.replace('.', '/')}", encoding="ascii") as file:
                value = file.read().strip()
        except OSError:
            continue
        if value == bad:
            return f"an administrator lets users make user namespaces on the nodes: sysctl -w {key}={good}"
    return "they may be used up, or forbidden by a security module: sysctl user.max_user_namespaces, the kernel's log"


def needs_administrator() -> bool:
    """Return whether users are refused a user namespace in which they can mount, and one with CAP_SYS_ADMIN is not.

    So it is with `kernel.unprivileged_userns_clone = 0`, and on Ubuntu from 24.04 on as it comes. Tried by children.
    """
    return not _user_can(administrator=False) and _user_can(administrator=True)


def _user_can(*, administrator: bool) -> bool:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            linux.become(_NOBODY, _NOBODY, [], administrator=administrator)
            linux.unshare(linux.CLONE_NEWUSER)
            linux.unshare(linux.CLONE_NEWNS)
            linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(pid, 0)[1] == 0


class IdMaps:
    """Namespaces for idmapped mounts, kept, since each costs a fork."""

    def __init__(self) -> None:
        self._made: dict[tuple[int, int, int], int] = {}

    def get(self, uid: int, gid: int, group: int) -> int:
        """Return a namespace that maps uid 0 and gid `group` on disk to this user. Raises OSError."""
        known = self._made.get((uid, gid, group))
        if known is not None:
            return known
        while len(self._made) >= _CACHED_MAX:
            os.close(self._made.pop(next(iter(self._made))))
        made = make(uid, gid, group)
        self._made[(uid, gid, group)] = made
        return made


def make(uid: int, gid: int, group: int) -> int:
    """Make a user namespace that maps uid 0 and gid `group` to a user; the wait for it is short, and bounded.

    By a child that is root, so that no user can hold it up. Raises OSError, of "unshare" where none is to be had.
    """
    ours, theirs = socket.socketpair()
    with ours, theirs:
        child = children.fork({theirs.fileno()})
        if child is None:
            try:
                linux.unshare(linux.CLONE_NEWUSER)
                theirs.send(b"1")
                theirs.recv(1)
            finally:
                os._exit(0)
        theirs.close()
        ours.settimeout(_MADE_S)
        try:
            if ours.recv(1) != b"1":
                raise OSError(errno.EPERM, "no user namespace to be had", "unshare")
            child.write_map("uid_map", [(0, uid)])
            child.write_map("gid_map", [(group, gid)])
            return child.open("ns/user")
        except TimeoutError:
            raise OSError(errno.EPERM, "no user namespace to be had", "unshare") from None
        finally:
            child.kill()
            child.wait()
