"""The steps that run on this node, found by their control groups: nobody has to announce them.

Slurm's groups lie elsewhere in each of its versions and each hierarchy (system.slice/slurmstepd.scope/job_1/step_0,
slurm/uid_1000/job_1/step_0; of version 2 in 26.05 sG5ZQW0K3HB/step_0, the job's SLUID). So where they begin is learnt
from /proc/PID/cgroup of processes that are in one, and from then on those directories alone are looked at. Names of
groups are believed where root made them (steps/hierarchies.py). No command line and no environment of a user's is read:
they are a user's bytes, and reading them can hang on a user's file system.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from piolet.api import Place
from piolet.observe.sources._processes import is_roots, pids_of, stat_of
from piolet.steps import hierarchies, slurmstepd
from piolet.steps.hierarchies import Group

_LEARN_S = 10.0
_LOOKED_AT_MAX = 2000
_STEPS_MAX = 512
_JOB, _STEP, _UID = "job_", "step_", "uid_"
_SLUID = re.compile(r"s[0-9A-Z]{6,40}")
_NAME = re.compile(r"[A-Za-z0-9+][A-Za-z0-9_+-]{0,59}")


@dataclass(frozen=True)
class FoundStep:
    """A step.

    job, step   as the control group names them; a job that has its SLUID there by its number, as far as that is known
    uid, gid    of its first process that is not root's; 0: all are root's
    groups      its control groups, as in api.Target
    place       the directory by which it was found, and what tells it from a later one of the same name
    began       when the oldest of its processes was started, seconds since 1970
    """

    job: str
    step: str
    uid: int
    gid: int
    groups: tuple[tuple[str, str], ...]
    place: tuple[str, int]
    began: float


class Finder:
    """Looks for steps; `look` is to be called about once a second, by one thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._learn = float("-inf")
        self._looked_at: set[int] = set()
        self._tops: dict[str, None] = {}
        self._known: dict[tuple[str, int], FoundStep] = {}

    def look(self) -> dict[tuple[str, int], FoundStep]:
        """Return the steps that have a process that is no slurmstepd, by place, and are the first that are found."""
        if not self._tops:
            self._tops = dict.fromkeys(_usual_tops())
        if self._clock() >= self._learn or not self._tops:
            self._learn = self._clock() + _LEARN_S
            self._find_tops()
        found: dict[tuple[str, int], FoundStep] = {}
        named: set[tuple[str, str]] = set()
        for place in self._places():
            step = self._known.get(place) or _step_at(place)
            if step is not None and len(found) < _STEPS_MAX and (step.job, step.step) not in named:
                found[place] = step
                named.add((step.job, step.step))
        self._known = found
        return found

    def _find_tops(self) -> None:
        """Learn from processes that were not looked at yet where groups of jobs lie."""
        pids = {int(name) for name in os.listdir("/proc") if name.isdigit()}
        new = sorted(pids - self._looked_at)[:_LOOKED_AT_MAX]
        self._looked_at = (self._looked_at & pids) | set(new)
        seen = None
        for pid in new:
            try:
                groups = [group for group in hierarchies.of(pid) if hierarchies.in_job(group)]
            except (OSError, ValueError):
                continue
            for group in groups:
                parts = group.path.split("/")
                at = next(number for number, part in enumerate(parts) if part.startswith((_JOB, _STEP)))
                at -= at > 0 and parts[at].startswith(_STEP)  # the job is the part before: its SLUID
                at -= at > 0 and parts[at - 1].startswith(_UID)
                seen = hierarchies.own_mounts() if seen is None else seen
                where = hierarchies.directory(Group(group.controllers, "/".join(parts[:at]) or "/"), seen)
                if where is not None:
                    self._tops[where] = None

    def _places(self) -> Iterator[tuple[str, int]]:
        for top in list(self._tops):
            if not os.path.isdir(top):
                del self._tops[top]
                continue
            named = (name for name in _below(top, "s") if _SLUID.fullmatch(os.path.basename(name)))
            by_user = (job for uid in _below(top, _UID) for job in _below(uid, _JOB))
            for job in [*_below(top, _JOB), *by_user, *named]:
                for step in _below(job, _STEP):
                    try:
                        yield step, os.stat(step).st_ino
                    except OSError:
                        continue


def _usual_tops() -> Iterator[str]:
    """Yield where Slurm's groups usually lie: slurmd makes these places before the first job."""
    for mount in hierarchies.own_mounts():
        for name in _below(mount.point, "slurm"):
            yield name
        for name in _below(f"{mount.point}/system.slice", ""):
            if name.endswith("slurmstepd.scope"):
                yield name


def _below(directory: str, prefix: str) -> list[str]:
    try:
        return [f"{directory}/{name}" for name in os.listdir(directory) if name.startswith(prefix)]
    except OSError:
        return []


def _step_at(place: tuple[str, int]) -> FoundStep | None:
    """Return the step whose group this is; None: no process of its user is in it yet, or it is no step's.

    In version 1 Slurm gives a step's group to its user. The job's stays root's: so root named the step's.
    """
    proc = Place()
    path = "/".join(place[0].split("/")[-2:])
    job, step = (part.removeprefix(prefix) for part, prefix in zip(path.split("/"), (_JOB, _STEP), strict=True))
    if not (_NAME.fullmatch(job) and _NAME.fullmatch(step) and hierarchies.roots_own(os.path.dirname(place[0]))):
        return None
    try:
        pids = pids_of(Path(place[0]))
        began = {pid: stat.began for pid in pids if (stat := stat_of(proc, pid)) is not None}
        users = [pid for pid in sorted(began, key=lambda pid: began[pid]) if not is_roots(proc, pid)]
        tasks = users or [pid for pid in began if not _is_stepd(proc, pid)]
        if not tasks:
            return None
        if not job.isdecimal():
            job = _number(proc, min(began, key=lambda pid: began[pid])) or job
        groups = tuple(hierarchies.of_step(hierarchies.of(tasks[0]), hierarchies.own_mounts()))
        status = os.stat(f"/proc/{tasks[0]}")
    except (OSError, ValueError):
        return None
    up = min(began.values()) / os.sysconf("SC_CLK_TCK")
    since = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + up
    ours = tuple(group for group in groups if group[1].endswith(f"/{path}"))
    return FoundStep(job, step, status.st_uid, status.st_gid, ours, place, since)


def _number(proc: Place, oldest: int) -> str:
    """Return the number of a job that is named by its SLUID, as the title of its slurmstepd says it; '': it does not.

    That is root's and the oldest process of the step, so that no process of the step's user is taken for it.
    """
    if not (is_roots(proc, oldest) and _is_stepd(proc, oldest)):
        return ""
    try:
        said = slurmstepd.title(Path(f"/proc/{oldest}/cmdline").read_bytes()[:256])
    except OSError:
        return ""
    return said[0] if said is not None and said[0].isdecimal() else ""


def _is_stepd(proc: Place, pid: int) -> bool:
    stat = stat_of(proc, pid)
    return stat is not None and stat.name.startswith("slurmstepd")
