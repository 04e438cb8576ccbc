"""Do file systems answer? A hung one must not hang the vetting: each is looked at by a child that can be killed."""

from __future__ import annotations

import os
import select
import signal
import time
from dataclasses import dataclass

from piolet.api import FAIL, PASS, USER, Context, Eval, Inconclusive, Verdict, parameter
from piolet.vet.evals import _files

_NETWORK = ("nfs", "nfs4", "lustre", "gpfs", "beegfs", "beegfs_nodev", "ceph", "cifs", "smb3", "wekafs", "panfs", "afs")


@dataclass(frozen=True)
class Mounts(Eval):
    """Asks each file system for its space and the first entry of its root."""

    name = "mounts"
    text = "file systems are mounted and answer"
    how = "statvfs, one directory entry, and a written file if asked for, each in a killable child, all at once"
    source = "the file systems; without 'paths' those of the network in /proc/self/mounts"
    unit = "s"
    better = "lower"

    paths: tuple[str, ...] = parameter((), text="what must answer; ${VARIABLES} of the step are replaced")
    answer: float = parameter(2.0, text="how long each may take", unit="s", least=0.01)
    mounted: bool = parameter(False, text="each path must be a mount point")
    writable: bool = parameter(False, text="a file must be writable there")
    min_free: float = parameter(0.0, text="the least free space of each", unit="GB", least=0)
    min_free_inodes: int = parameter(0, text="the least free inodes of each", unit="inodes", least=0)

    def check(self, context: Context) -> Verdict:
        """Name every file system that is missing, hung or full."""
        mounted = _mounts(context)
        paths = [_expand(path, context) for path in self.paths] if self.paths else _network(mounted)
        points = {point for point, _ in mounted}
        wrong = [f"{path} is not mounted" for path in paths if self.mounted and os.path.normpath(path) not in points]
        started = time.monotonic()
        children = {path: _start(path, self.writable) for path in paths}
        end = min(started + self.answer, context.deadline)
        slowest, late = 0.0, []
        for path, (pid, pipe) in children.items():
            if select.select([pipe], [], [], max(0.0, end - time.monotonic()))[0]:
                problem, seconds = self._judge(path, pipe)
            elif end < started + self.answer:  # our own time is up, and not the path's
                problem, seconds = "", 0.0
                late.append(path)
            else:
                problem, seconds = f"{path} did not answer within {self.answer:g} s", self.answer
            os.kill(pid, signal.SIGKILL)
            os.close(pipe)
            slowest = max(slowest, seconds)
            if problem:
                wrong.append(problem)
        if late and not wrong:
            raise Inconclusive(f"there was no time to wait for {', '.join(late)[:200]}")
        limit = self.answer if paths else None
        return Verdict(
            FAIL if wrong else PASS, "; ".join(wrong)[:500], "slowest answer", slowest, limit, "s", {"paths": paths}
        )

    def _judge(self, path: str, pipe: int) -> tuple[str, float]:
        """Return what is wrong with a path that answered, or '', and how long it took."""
        answer = os.read(pipe, 4096).decode("utf-8", "replace").split("\n")
        if len(answer) != 4:
            return f"{path}: {answer[0] or 'the process that looked at it died'}", 0.0
        seconds, free, inodes, total_inodes = float(answer[0]), int(answer[1]), int(answer[2]), int(answer[3])
        if free / 1e9 < self.min_free:
            return f"{path} has {free / 1e9:.3g} GB free, {self.min_free:g} GB are wanted", seconds
        if total_inodes and inodes < self.min_free_inodes:
            return f"{path} has {inodes} inodes free, {self.min_free_inodes} are wanted", seconds
        return "", seconds


def _expand(path: str, context: Context) -> str:
    import string

    try:
        return string.Template(path).substitute(context.environ)
    except (KeyError, ValueError):
        raise Inconclusive(f"'{path}' names a variable that is not set", USER) from None


def _mounts(context: Context) -> list[tuple[str, str]]:
    """Return mount points and their types."""
    lines = (_files.text(context.path("/proc/self/mounts")) or "").splitlines()
    words = [line.split() for line in lines]
    return [(w[1].replace("\\040", " "), w[2]) for w in words if len(w) > 2]


def _network(mounted: list[tuple[str, str]]) -> list[str]:
    return [point for point, kind in mounted if kind in _NETWORK or kind.startswith("fuse.")]


def _start(path: str, write: bool) -> tuple[int, int]:
    """Fork a child that looks at `path`; return its pid and the pipe it answers through."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(ours)
        try:
            answer = _look(path, write)
        except OSError as error:
            answer = error.strerror or "error"
        os.write(theirs, answer.encode())
        os._exit(0)
    os.close(theirs)
    return pid, ours


def _look(path: str, write: bool) -> str:
    started = time.monotonic()
    space = os.statvfs(path)
    if os.path.isdir(path):
        with os.scandir(path) as entries:
            next(entries, None)
    if write:
        name = os.path.join(path, f".piolet-vet-{os.uname().nodename}-{os.getpid()}")
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, b"piolet")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
            os.unlink(name)
    seconds = time.monotonic() - started
    return f"{seconds:.6f}\n{space.f_bavail * space.f_frsize}\n{space.f_favail}\n{space.f_files}"
