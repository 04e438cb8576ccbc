"""A census of everything of ours that a cluster has on this machine, to be counted before and after a fault.

Every process of a cluster is in the cluster's control group and cannot leave it, so what is found from there is
all there is: processes by kind, zombies of pioletd, the mounts of every mount namespace, user and mount
namespaces, loop devices, descriptors of pioletd and of the image service, files of the nodes' state, of the store
and of the two accounts in /tmp.

An image of the store that a node keeps mounted for the next step is no leftover: one loop device for each node
and image is expected, a loop device on a deleted image is counted.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import re
import socket
import stat
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tools.cluster import controllers
from tools.cluster.layout import Layout, node_names
from tools.cluster.state import State, load

_PROGRAMS = ("squashfuse", "skopeo", "mksquashfs", "crun", "slurmstepd", "slurmd", "slurmctld", "munged")
_ACCOUNTS = ("piolet", "piolet-images")
_TEMPORARY = Path("/tmp")
_NS_GET_OWNER_UID = 0xB704
_MAPS_MOST = 8  # three users, and root's own tries
_ELSEWHERE = (f"{_TEMPORARY}/", "/run/netns")


@dataclass(frozen=True)
class Census:
    """What is there, by category: how often each thing was found."""

    found: dict[str, Counter[str]] = field(default_factory=dict)

    def difference(self, before: Census) -> list[str]:
        """Return a line for each thing that is there now and was not, or more often than it was, `before`."""
        lines = []
        for category, now in self.found.items():
            for name, count in sorted((now - before.found.get(category, Counter())).items()):
                lines.append(f"{category}: {count} more: {name}")
        return lines

    def count(self, category: str) -> int:
        """Return how many things of a category there are."""
        return sum(self.found.get(category, Counter()).values())


def take(layout: Layout) -> Census:
    """Count everything now. Things that come and go meanwhile may or may not be counted."""
    state = load(layout.state_file)
    assert state is not None, f"no cluster is running in {layout.root}"
    pids = controllers.members(state)
    roles = _roles(state)
    kinds = {pid: kind for pid in pids if (kind := _kind(pid, roles)) is not None}
    return Census(
        {
            "process": Counter(kinds.values()),
            "zombie": Counter(_zombies({pid for pid, kind in kinds.items() if kind.startswith("pioletd")})),
            "namespace": Counter(_namespaces(kinds)),
            "mount": Counter(_mounts(layout, kinds)),
            "loop device": Counter(_loops(layout, state)),
            "descriptor": Counter(_descriptors(kinds)),
            "file": Counter(_files(layout, state)),
        }
    )


def wait_settled(layout: Layout, before: Census, limit_s: float = 15.0) -> Census:
    """Wait until there is nothing that was not there `before`; AssertionError says what still is."""
    deadline = time.monotonic() + limit_s
    while True:
        now = take(layout)
        more = now.difference(before)
        if not more:
            return now
        assert time.monotonic() < deadline, f"left over after {limit_s:.0f} s:\n  " + "\n  ".join(more)
        time.sleep(0.05)


def resident_kib(pid: int) -> int:
    """Return the anonymous memory of a process that is in use, shared with forked children or not."""
    return int(status(pid, "RssAnon").split()[0])


def status(pid: int, name: str) -> str:
    """Return a field of /proc/PID/status; empty when there is no such process."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text("utf-8", "replace").splitlines():
            if line.startswith(f"{name}:"):
                return line.partition(":")[2].strip()
    return ""


def parent(pid: int) -> int:
    return int(status(pid, "PPid") or 0)


def command_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
    return ""


def _roles(state: State) -> dict[int, str]:
    """Return the daemons on record: their names by pid."""
    return {process.pid: process.name for process in state.processes}


def _kind(pid: int, roles: dict[int, str]) -> str | None:
    """Say what a process is; the same for the process that follows it after a restart. None: it is gone."""
    if pid in roles:
        return roles[pid]
    command, uid = command_of(pid), status(pid, "Uid").split()
    if not uid:
        return None
    program = os.path.basename(command.split(" ")[0]).rstrip(":")
    above = roles.get(parent(pid), "")
    if above.startswith("pioletd-"):
        return f"{above} {status(pid, 'Name').removeprefix('pioletd-') or 'ended'}"
    if program in _PROGRAMS:
        return f"{program} ({command})"
    if "pioletd" in command or "piolet-imaged" in command or "images.worker" in command:
        return f"child of a daemon, uid {uid[0]}: {command}"
    return f"task of uid {uid[0]}: {command or status(pid, 'Name')}"


def _zombies(daemons: set[int]) -> Iterator[str]:
    for name in os.listdir("/proc"):
        if name.isdigit() and status(int(name), "State").startswith("Z") and parent(int(name)) in daemons:
            yield f"child of pioletd: {status(int(name), 'Name')}"


def _namespaces(kinds: dict[int, str]) -> Iterator[str]:
    """Yield each user or mount namespace once; those of daemons by the daemon's name."""
    for which in ("user", "mnt"):
        named: dict[str, str] = {}
        for pid, kind in sorted(kinds.items(), key=lambda item: not item[1].startswith(("slurmd-", "pioletd-"))):
            with contextlib.suppress(OSError):
                link = os.readlink(f"/proc/{pid}/ns/{which}")
                if link != os.readlink(f"/proc/self/ns/{which}"):
                    named.setdefault(link, f"{which} of {kind.partition(' ')[0]}")
        yield from named.values()


def _mounts(layout: Layout, kinds: dict[int, str]) -> Iterator[str]:
    """Yield the mounts of every namespace: of this machine, of each node, of each pioletd, of each container.

    Of this machine, what others mount meanwhile is none of the cluster's: what other tests mount below /tmp or as
    network namespaces, and what is neither below the cluster's directory nor of a kind that Piolet mounts.
    """
    seen: set[int] = set()
    # Daemons on record first, whose names have no blank: a child that was forked just now is in the same namespace.
    for pid, kind in [(os.getpid(), "this machine"), *sorted(kinds.items(), key=lambda i: " " in i[1])]:
        with contextlib.suppress(OSError):
            number = os.stat(f"/proc/{pid}/ns/mnt").st_ino
            if number in seen:
                continue
            seen.add(number)
            for line in Path(f"/proc/{pid}/mountinfo").read_text("utf-8", "replace").splitlines():
                before, _, after = line.partition(" - ")
                place, tail = before.split()[4], after.split()
                if tail[0] == "squashfs" and "/mnt/images/" in place:
                    continue  # counted as a loop device
                here = kind == "this machine"
                below = here and place.startswith(f"{layout.root}/")
                if here and not below and place.startswith(_ELSEWHERE):
                    continue
                like_ours = tail[0].startswith("fuse") or tail[0] in ("overlay", "squashfs", "nsfs")
                if below or like_ours or "piolet" in line:
                    yield f"{kind.split(' (')[0]}: {tail[0]} {tail[1]} at {place}"


def _loops(layout: Layout, state: State) -> Iterator[str]:
    """Yield the loop devices on files of the cluster's store beyond one for each node and image."""
    images: Counter[str] = Counter()
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            backing = path.read_text("utf-8", "replace").strip()
            if backing.startswith(f"{layout.root}/"):
                images[backing] += 1
    for backing, count in images.items():
        kept = 0 if backing.endswith("(deleted)") else state.nodes
        yield from [f"on {backing}"] * max(0, count - kept)


def _descriptors(kinds: dict[int, str]) -> Iterator[str]:
    """Yield the descriptors of pioletd's processes and of the image service, by what they are.

    Without the namespaces in which pioletd keeps each user's map of ids for images: it makes one when that user has the
    first container on a node, which may be in any test. One in which a step ran is its user's.
    """
    for pid, kind in kinds.items():
        if not kind.startswith(("pioletd-", "piolet-imaged")) or kind.endswith("worker"):
            continue
        maps = 0
        with contextlib.suppress(OSError):
            for name in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    path = f"/proc/{pid}/fd/{name}"
                    target = os.readlink(path)
                    if target.startswith("user:") and _owner(path) == 0:
                        maps += 1
                        if maps <= _MAPS_MOST:
                            continue
                    yield f"{kind}: {re.sub(r'[0-9]+', 'N', target)}"


def _owner(namespace: str) -> int:
    """Return the uid of who made a user namespace."""
    uid = bytearray(4)
    with open(namespace, "rb") as file:
        fcntl.ioctl(file, _NS_GET_OWNER_UID, uid)
    return int.from_bytes(uid, sys.byteorder)


def _files(layout: Layout, state: State) -> Iterator[str]:
    for node in node_names(state.nodes):
        slurmd = state.find(f"slurmd-{node}")
        assert slurmd is not None
        root = Path(f"/proc/{slurmd.pid}/root/run/piolet")
        for path in root.rglob("*"):
            # What a node records of steps stays: a stream for each user, in bounds of its own.
            if path.suffix != ".jsonl" or path.parent.name not in ("events", "observe"):
                yield f"{node}: /run/piolet/{path.relative_to(root)}"
    for folder in ("tmp", "leases"):
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(layout.images / folder):
                # A service's heartbeat is named anew at each start.
                yield f"the store's {folder}: {'a heartbeat' if name.endswith('.process') else name}"
    owners = {pwd.getpwnam(name).pw_uid for name in _ACCOUNTS}
    for entry in os.scandir(_TEMPORARY):
        with contextlib.suppress(OSError):
            if entry.stat(follow_symlinks=False).st_uid in owners:
                yield f"of ours: {entry.path}"


def sockets_of(pid: int) -> int:
    """Return how many sockets a process has open."""
    count = 0
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            count += stat.S_ISSOCK(os.stat(f"/proc/{pid}/fd/{name}").st_mode)
    return count


def connect(path: str) -> socket.socket:
    """Return a connection to a daemon's socket."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(10)
    connection.connect(path)
    return connection
