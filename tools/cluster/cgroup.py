"""One control group that holds every process of a cluster, so that the end can be complete.

A pid may be used again and a task may leave its session, but no ordinary process leaves its control
group: what is in it is the cluster's, whoever its parent is by now. Only the version 2 hierarchy is
used, and no controller of it, so this works beside version 1 and beside systemd.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

from tools.cluster.errors import ClusterError

MOUNTINFO = Path("/proc/self/mountinfo")


def unescape(text: str) -> str:
    """Undo mountinfo's octal escapes of blank, tab, line end and backslash."""
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text


def find_hierarchy(mountinfo: str) -> Path | None:
    """Return where the version 2 hierarchy is mounted, whole and writable, or None."""
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields, filesystem = before.split(), after.split()
        if len(fields) >= 6 and filesystem[:1] == ["cgroup2"] and "rw" in fields[5].split(","):
            return Path(unescape(fields[4]))
    return None


def create(tag: str, fallback: Path) -> Path:
    """Return a fresh or existing group for the cluster `tag`; mounts the hierarchy at `fallback` if need be."""
    hierarchy = find_hierarchy(MOUNTINFO.read_text("utf-8"))
    if hierarchy is None:
        fallback.mkdir(parents=True, exist_ok=True)
        result = subprocess.run(
            ["mount", "-t", "cgroup2", "none", str(fallback)], capture_output=True, text=True, check=False
        )
        if result.returncode != 0:
            raise ClusterError(
                f"cannot mount the cgroup2 hierarchy at {fallback}: {result.stderr.strip()}",
                "the cluster needs Linux 5.14 or newer and the right to mount",
            )
        hierarchy = fallback
    group = hierarchy / f"piolet-cluster-{tag}"
    try:
        group.mkdir(exist_ok=True)
    except OSError as error:
        raise ClusterError(f"cannot make the control group {group}: {error.strerror}") from None
    return group


def members(group: Path) -> list[int]:
    """Return the pids in the group and in the groups below it."""
    pids: list[int] = []
    for directory, _, _ in os.walk(group):
        try:
            pids += [int(line) for line in Path(directory, "cgroup.procs").read_text("ascii").split()]
        except OSError:
            continue
    return pids


def wait_empty(group: Path, timeout_s: float) -> bool:
    """Wait until no process is left in the group; False when some still are after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while members(group):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def kill(group: Path, timeout_s: float = 10.0) -> None:
    """SIGKILL everything in the group, at once and without a race against forks, and wait for the end."""
    if not members(group):
        return
    switch = group / "cgroup.kill"
    deadline = time.monotonic() + timeout_s
    while True:
        if switch.exists():
            switch.write_text("1", "ascii")
        else:
            for pid in members(group):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
        if wait_empty(group, 0.5):
            return
        if time.monotonic() > deadline:
            raise ClusterError(f"processes {members(group)} do not die in the kernel", "look at /proc/PID/stack")


def remove(group: Path, fallback: Path) -> None:
    """Remove the emptied group, the groups below it, and the mount that `create` may have made."""
    for directory, _, _ in os.walk(group, topdown=False):
        deadline = time.monotonic() + 2.0
        while True:
            try:
                Path(directory).rmdir()
                break
            except FileNotFoundError:
                break
            except OSError:  # a zombie that is not reaped yet keeps its group busy for a moment
                if time.monotonic() > deadline:
                    break
                time.sleep(0.02)
    if fallback.is_mount():
        subprocess.run(["umount", str(fallback)], capture_output=True, check=False)
    if fallback.is_dir():
        fallback.rmdir()
