"""A store of a group's, EDF_IMAGESTORE with EDF_IMAGESTORE_GROUP: whom its user believes, and what is checked of that.

Who names a group believes each of its members: an image is whatever a member says it is, and it runs with the rights of
who uses it. So nothing in the store can name the group, and nobody else has a say: a directory of another group, or one
that others may write to, is refused, and a file counts only if a present member of the group owns it (who has left it
may still hold a directory open, or own one).
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import stat
from dataclasses import dataclass, field

from piolet.base.errors import ImageError

VARIABLE = "EDF_IMAGESTORE_GROUP"
FOLDER, FILE = 0o2770, 0o660
"""Modes of what is in such a store."""
UMASK = 0o007


@dataclass(frozen=True)
class Group:
    """The group whose members are believed."""

    name: str
    gid: int
    _known: dict[int, bool] = field(default_factory=dict, compare=False)

    def trusts(self, uid: int) -> bool:
        """Return whether `uid` is this user or a member of the group, by what the user database says now."""
        if uid not in self._known:
            self._known[uid] = uid == os.geteuid() or self._is_member(uid)
        return self._known[uid]

    def _is_member(self, uid: int) -> bool:
        try:
            entry = pwd.getpwuid(uid)
        except KeyError:
            return False
        return self.gid in os.getgrouplist(entry.pw_name, entry.pw_gid)


def group_of(root: str) -> Group | None:
    """Return the group with which the user shares the store at `root`, made if need be; None: it is their own.

    Raises ImageError: no such group, not a member, or the directory is not that group's alone.
    """
    name = os.environ.get(VARIABLE)
    if not name:
        return None
    try:
        group = Group(name, grp.getgrnam(name).gr_gid)
    except KeyError:
        raise ImageError(f"{VARIABLE} names the group '{name}', which is not known on this machine") from None
    if group.gid not in (os.getegid(), *os.getgroups()):
        raise ImageError(f"you are not in the group {name}, which {VARIABLE} names", "`id` shows your groups")
    try:
        _make(root, group)
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ImageError(f"the image store {root} cannot be used: {error.strerror}") from None
    try:
        _check(root, os.fstat(fd), group)
    finally:
        os.close(fd)
    return group


def _make(root: str, group: Group) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(root, 0o700)
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fchown(fd, -1, group.gid)
            os.fchmod(fd, FOLDER)
        finally:
            os.close(fd)


def _check(root: str, found: os.stat_result, group: Group) -> None:
    mode = stat.S_IMODE(found.st_mode)
    wrong = None
    if found.st_gid != group.gid:
        wrong = f"is of the group {found.st_gid}, not of {group.name}"
    elif mode & 0o002:
        wrong = "may be written by everybody"
    elif mode & 0o2070 != 0o2070:
        wrong = f"has mode {mode:04o}, by which its group cannot share what is in it"
    elif not group.trusts(found.st_uid):
        wrong = f"belongs to uid {found.st_uid}, who is not in the group {group.name}"
    if wrong:
        hint = f"one of the group's is made by: install -d -m 2770 -g {group.name} {root}"
        raise ImageError(f"the image store {root} {wrong}", hint)
