"""What earlier jobs left on the node: processes of others, zombies, processes that hang, full /dev/shm."""

from __future__ import annotations

import os
import pwd
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from piolet.api import FAIL, NODE, PASS, Context, Eval, Inconclusive, Verdict, parameter
from piolet.vet.evals import _files

_LOOK_S = 1.0
"""Long enough for a disk that is only slow: what waits for it is woken again and again."""
_LOOK_AGAIN_S = 0.02
_USERS = ("1000-61183", "65536-4294967293")
"""Where pioletd does not tell. Those between are systemd's for services (Debian's slurm too), and nobody."""


class _Process(NamedTuple):
    uid: int
    state: str
    name: str
    switches: str
    parent: int
    job: str


_JOB = re.compile(r"/job_([^/\n]+)")
"""The part of a control group's path that names the job, in both versions of control groups."""


@dataclass(frozen=True)
class Leftovers(Eval):
    """Walks /proc and /dev/shm."""

    name = "leftovers"
    text = "processes of other users without a job here, zombies, hanging processes, and what fills /dev/shm"
    how = "walks /proc (jobs by control groups and slurmstepd; in state D for a second without waking hangs), /dev/shm"
    source = "/proc, /dev/shm"
    needs = "a /proc that shows the processes of others"
    loads = frozenset({"disk"})  # what another eval waits for is no leftover

    max_foreign: int = parameter(0, text="of other ordinary users, outside running jobs", unit="processes", least=0)
    min_uid: int = parameter(1000, text="users below are none, whatever [vet] users says", unit="uid", least=0)
    allow_users: tuple[str, ...] = parameter((), text="users whose processes belong here")
    max_zombies: int = parameter(20, text="zombies", unit="processes", least=0)
    max_hanging: int = parameter(0, text="processes in uninterruptible sleep", unit="processes", least=0)
    max_shm: float = parameter(1.0, text="what may be in /dev/shm", unit="GB", least=0)

    def check(self, context: Context) -> Verdict:
        """Name what is too much, with examples."""
        first = _processes(context)
        if 1 not in first:
            raise Inconclusive("/proc does not show the processes of others (hidepid)")
        of_jobs = _of_running_jobs(first)
        users = {first[pid].uid for pid in of_jobs}  # of these jobs, slurmstepd's own root among them
        people = _ranges(context.facts.get("users") or _USERS)
        foreign = [
            pid for pid, one in first.items() if self._foreign(one.uid, context.uid, people) and pid not in of_jobs
        ]
        zombies = [pid for pid, one in first.items() if one.state == "Z"]
        hanging = _hanging(context, first)
        shm = _shm(context.path("/dev/shm"), users - {0, context.uid})  # noqa: S108 - that is what is looked at
        wrong = []
        for what, found, limit in (
            ("processes of other users", foreign, self.max_foreign),
            ("zombies", zombies, self.max_zombies),
            ("hanging processes", hanging, self.max_hanging),
        ):
            if len(found) > limit:
                wrong.append(f"{len(found)} {what} ({_examples(found, first)})")
        if shm / 1e9 > self.max_shm:
            wrong.append(f"{shm / 1e9:.3g} GB in /dev/shm, {self.max_shm:g} GB are allowed")
        details = {"foreign": len(foreign), "zombies": len(zombies), "hanging": len(hanging), "shm_bytes": shm}
        return Verdict(FAIL if wrong else PASS, "; ".join(wrong)[:500], details=details, whose=NODE)

    def _foreign(self, uid: int, own: int, people: Sequence[range]) -> bool:
        ordinary = uid >= self.min_uid and any(uid in ids for ids in people)
        return ordinary and uid != own and _user(uid) not in self.allow_users


def _ranges(texts: Sequence[str]) -> list[range]:
    """Return the ids of users in ranges like '1000-60000'."""
    pairs = (text.partition("-") for text in texts)
    return [range(int(first), int(last) + 1) for first, _, last in pairs]


def _processes(context: Context) -> dict[int, _Process]:
    """Return every process."""
    try:
        names = os.listdir(context.path("/proc"))
    except OSError as error:
        raise Inconclusive(f"cannot read /proc: {error.strerror}") from None
    seen = ((int(name), _process(context, name)) for name in names if name.isdigit())
    return {pid: one for pid, one in seen if one is not None}


def _process(context: Context, pid: int | str) -> _Process | None:
    """Return a process, or None: it has ended. `switches` counts how often it was on a processor."""
    stat = _files.text(context.path(f"/proc/{pid}/stat"))
    status = _files.text(context.path(f"/proc/{pid}/status"))
    if stat is None or status is None:
        return None
    # The name stands in parentheses and may hold any character.
    state = stat.rpartition(")")[2].split()[:1]
    uid = next((line.split()[1] for line in status.splitlines() if line.startswith("Uid:")), "0")
    switches = " ".join(line for line in status.splitlines() if "ctxt_switches:" in line)
    called = stat.partition("(")[2].rpartition(")")[0]
    fields = stat.rpartition(")")[2].split()[1:2]
    parent = int(fields[0]) if fields and fields[0].isdigit() else 0
    job = _JOB.search(_files.text(context.path(f"/proc/{pid}/cgroup")) or "")
    return _Process(int(uid), state[0] if state else "?", called, switches, parent, job[1] if job else "")


def _of_running_jobs(table: dict[int, _Process]) -> set[int]:
    """Return the processes of jobs that run here.

    A job runs for as long as root's slurmstepd does, which is in the job's control group; what a job has left behind
    is in one without it, or in none. Without control groups a job's processes descend from slurmstepd, and those that
    left it are its user's.
    """
    stepds = {pid for pid, one in table.items() if one.uid == 0 and one.name.startswith("slurmstepd")}
    jobs = {table[pid].job for pid in stepds} - {""}
    below = {pid for pid in table if _descends(pid, stepds, table)}
    users = {table[pid].uid for pid in below if not table[pid].job} - {0}
    return {pid for pid, one in table.items() if one.job in jobs or pid in below or (not one.job and one.uid in users)}


def _descends(pid: int, ancestors: set[int], table: dict[int, _Process]) -> bool:
    seen: set[int] = set()
    while pid in table and pid not in seen:
        if pid in ancestors:
            return True
        seen.add(pid)
        pid = table[pid].parent
    return False


def _hanging(context: Context, table: dict[int, _Process]) -> list[int]:
    """Return the processes in uninterruptible sleep that stay in it; look no longer than one is left."""
    waiting = [pid for pid, one in table.items() if one.state == "D"]
    end = time.monotonic() + min(_LOOK_S, context.remaining())
    while waiting:
        time.sleep(_LOOK_AGAIN_S)
        waiting = [pid for pid in waiting if _process(context, pid) == table[pid]]
        if time.monotonic() >= end:
            break
    return waiting


def _examples(pids: list[int], table: dict[int, _Process]) -> str:
    shown = [f"{table[pid].name} {pid} of {_user(table[pid].uid)}" for pid in pids[:3]]
    return ", ".join(shown) + (", …" if len(pids) > 3 else "")


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _shm(directory: str, jobs_of: set[int]) -> int:
    """Return the bytes in `directory`, without those of users whose jobs run here: they are theirs to have."""
    total = 0
    for base, _, names in os.walk(directory):
        for name in names:
            try:
                found = os.lstat(os.path.join(base, name))
            except OSError:
                continue
            total += 0 if found.st_uid in jobs_of else found.st_blocks * 512
    return total
