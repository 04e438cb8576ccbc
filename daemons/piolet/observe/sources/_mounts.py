"""What is mounted on this node, from mountinfo; nothing here looks into a file system, since one may hang."""

from __future__ import annotations

import re
from dataclasses import dataclass

from piolet.api import Place


@dataclass(frozen=True)
class Mount:
    """One mount: `device` is major:minor, `source` what was mounted."""

    device: str
    point: str
    kind: str
    source: str


def mounts(place: Place) -> list[Mount]:
    """Return what this process's namespace has, later mounts last. Raises OSError."""
    found = []
    for line in place.text("/proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        fields, tail = left.split(" "), right.split(" ")
        if len(fields) >= 5 and len(tail) >= 2:
            found.append(Mount(fields[2], plain(fields[4]), tail[0], plain(tail[1])))
    return found


def plain(text: str) -> str:
    """Undo the kernel's way of writing blanks, and replace what no text has."""
    undone = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
    return undone.encode("utf-8", "replace").decode("utf-8", "replace")
