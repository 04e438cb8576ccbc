"""What a container's /etc/passwd and /etc/group say: the user and their groups, before what the image has."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd

from piolet.base.errors import ContainerError


def of_user() -> tuple[str, list[str]]:
    """Return the user's line of passwd and the lines of their groups, from the host's databases."""
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
    return line, groups


def merge(image: str, own: list[str]) -> str:
    """Return the image's passwd or group file with `own` lines in front, which win by name and by number.

    But who is root, or its group, is as the image has it: its shell and home, say.
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
    return "\n".join([*own, *kept]) + "\n"


def write(user: str, groups: list[str]) -> None:
    """Write both files into the root that this process has, where nothing may be mounted yet. Raises ContainerError."""
    for path, own in (("/etc/passwd", [user]), ("/etc/group", groups)):
        image = ""
        with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="surrogateescape") as file:
            image = file.read(1 << 20)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
            with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:
                file.write(merge(image, own))
            os.chmod(path, 0o644)
        except OSError as error:
            raise ContainerError(f"cannot write the container's {path}: {error.strerror}") from None
