"""The label of a container: the name of its root mount, by which an earlier daemon's is found again."""

from __future__ import annotations

import os

from piolet.system import processes

LABEL = "piolet:"


def place(node: str, state: str) -> str:
    """Return what tells the containers of this daemon from those of others: its node, and where its state is.

    Several nodes, even of one name, may share a kernel, as where two test clusters run on one machine; each
    has a file system of its own for `state`, whose number stays until a reboot. Raises OSError.
    """
    return f"{node}.{os.stat(state).st_dev:x}"


def label(step: str, place: str) -> str:
    """Return the name of a container's root mount."""
    return f"{LABEL}{place}:{step}"


def label_of(pid: int) -> str | None:
    """Return the label of the container that the process is in, or None."""
    try:
        with open(f"/proc/{pid}/mountinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                left, _, right = line.partition(" - ")
                fields, tail = left.split(), right.split()
                if fields[4] == "/" and len(tail) > 1 and tail[0] == "overlay" and tail[1].startswith(LABEL):
                    return tail[1]
    except (OSError, IndexError):
        pass
    return None


def in_containers() -> dict[str, list[int]]:
    """Return the processes of every container of ours, by label."""
    own = processes.namespace_of(os.getpid())
    labels: dict[int, str | None] = {}
    found: dict[str, list[int]] = {}
    for pid in processes.pids():
        number = processes.namespace_of(pid)
        if number is None or number == own:
            continue
        if number not in labels:
            labels[number] = label_of(pid)
        label = labels[number]
        if label is not None:
            found.setdefault(label, []).append(pid)
    return found
