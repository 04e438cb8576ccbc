"""What a container's /etc/passwd and /etc/group say: the user and their groups, before what the image has."""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
from collections.abc import Sequence
from dataclasses import dataclass

from piolet.base.errors import ContainerError

_LIMIT = 1 << 20


@dataclass(frozen=True)
class Lines:
    """Lines of passwd and of group: the user's, and those of other accounts, which come last."""

    user: str
    groups: list[str]
    others: list[str]


def of_user(others: list[str]) -> Lines:
    """Return the lines of the user and their groups, from the host's databases, beside those of others."""
    uid, gid = os.getuid(), os.getgid()
    try:
        user = pwd.getpwuid(uid)
        name, line = user.pw_name, f"{user.pw_name}:x:{uid}:{gid}:{user.pw_gecos}:{user.pw_dir}:{user.pw_shell}"
    except KeyError:
        name, line = str(uid), f"{uid}:x:{uid}:{gid}::/:/bin/sh"
    groups = []
    for number in dict.fromkeys([gid, *os.getgroups()]):
        try:
            groups.append(f"{grp.getgrgid(number).gr_name}:x:{number}:{name}")
        except KeyError:
            continue
    return Lines(line, groups, others)


def merge(image: str, own: list[str], others: Sequence[str] = ()) -> str:
    """Return the image's passwd or group file with `own` lines in front, which win by name and by number.

    But who is root, or its group, is as the image has it: its shell and home, say. Of `others` come those whose name is
    not there yet.
    """
    if any(line.split(":")[2:3] == ["0"] for line in image.splitlines()):
        own = [line for line in own if line.split(":")[2] != "0"]
    names = {line.split(":")[0] for line in own}
    numbers = {line.split(":")[2] for line in own}
    kept = []
    for line in image.splitlines():
        fields = line.split(":")
        if len(fields) > 2 and fields[0] not in names and fields[2] not in numbers:
            kept.append(line)
    lines = [*own, *kept]
    if others:
        there = {line.partition(":")[0] for line in lines}
        lines += [line for line in others if line.partition(":")[0] not in there]
    return "\n".join(lines) + "\n"


def write(lines: Lines) -> None:
    """Write both files into the root that this process has, where nothing may be mounted yet. Raises ContainerError."""
    for path, own, others in (("/etc/passwd", [lines.user], lines.others), ("/etc/group", lines.groups, [])):
        try:
            _replace(path, os.fsencode(merge(os.fsdecode(_read(path)), own, others)))
        except OSError as error:
            raise ContainerError(f"cannot write the container's {path}: {error.strerror}") from None


def _read(path: str) -> bytes:
    """Return what the image has there; nothing if it is no file. Not blocking: it may be anything."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(descriptor, _LIMIT)
    except OSError:
        return b""
    finally:
        os.close(descriptor)


def _replace(path: str, data: bytes) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o644)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        descriptor = os.open(path, flags, 0o644)
    try:
        os.fchmod(descriptor, 0o644)
        if os.write(descriptor, data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
    finally:
        os.close(descriptor)
