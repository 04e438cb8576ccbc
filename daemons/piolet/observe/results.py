"""Where results of a user's jobs are: vettings, scores, marks. In the user's state directory, or the site's for users.

    DIRECTORY/CLUSTER/vet/vet-112.json      DIRECTORY/CLUSTER/score/112.0[-r1]/      DIRECTORY/CLUSTER/marks/112/

DIRECTORY is `[results] directory`, or XDG_STATE_HOME/piolet (~/.local/state/piolet). Clusters may share it, and count
jobs by themselves. It is bounded in number and bytes: whoever adds a result removes the oldest of that cluster and says
so, and touches nothing of the last days.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from piolet.base import files
from piolet.base.texts import counted

VET, SCORE, MARKS = KINDS = ("vet", "score", "marks")
YOUNG_S = 3 * 86400.0
LOOKED_S = 3600.0
_STAMP = ".looked"
_ENTRIES_MOST = 100_000  # of a directory that somebody filled: no more are looked at
_RESULT = re.compile(r"(?:vet-)?(\d{1,10})(?:\.[a-z0-9]+)?(?:-r\d+)?(?:\.jsonl?)?")


def place_of(variables: Mapping[str, str], directory: str, user: str, cluster: str) -> str | None:
    """Return the directory of a user's results on a cluster, None: there is no place for them."""
    root = directory.replace("%u", user) if directory else files.state_directory(variables)
    return None if root is None else os.path.join(root, cluster.replace("/", "_"))


def score_out(place: str) -> str:
    """Return where data sets of --score go, as `out=` says it."""
    return f"{place}/{SCORE}/%j.%s%r"


def vet_file(place: str, job: int) -> str:
    """Return where the result of a job's vetting goes."""
    return f"{place}/{VET}/vet-{job}.json"


def marks_place(place: str, job: int) -> str:
    """Return the directory that marks of a job go to."""
    return f"{place}/{MARKS}/{job}"


def find(place: str | None, kind: str, name: str) -> Path | None:
    """Return where the results `name` of a kind are, None: there are none."""
    if place is None or _job_of(name) is None:
        return None
    path = Path(place, kind, name)
    return path if os.path.lexists(path) else None


def is_kept(path: Path, place: str) -> bool:
    """Return whether something lies among a user's results."""
    return Path(place) in path.parents


def of_job(place: str | None, kind: str, job: int) -> list[Path]:
    """Return all results of a kind that are of a job, in order of their names."""
    return sorted(path for path in every(place, kind) if _job_of(path.name) == job)


def every(place: str | None, kind: str) -> list[Path]:
    """Return all results of a kind."""
    return [] if place is None else list(_entries(Path(place, kind)))


def make_room(place: str, most: int, most_mb: int, now: float | None = None) -> str:
    """Remove the oldest results above the bounds; return what its user is told, '': nothing was removed.

    What changed in the last three days stays, whatever the bounds say. It looks once an hour.
    """
    now = time.time() if now is None else now
    if not _is_time(Path(place, _STAMP), now):
        return ""
    found = []
    for kind in KINDS:
        found += [one for path in _entries(Path(place, kind)) if (one := _weighed(path)) is not None]
    found.sort(key=lambda one: one[0])
    total, removed, freed = sum(size for _, size, _ in found), 0, 0
    for changed, size, path in found:
        if (len(found) - removed <= most and total - freed <= most_mb * 1_000_000) or changed > now - YOUNG_S:
            break
        if _remove(path):
            removed, freed = removed + 1, freed + size
    if not removed:
        return ""
    return (
        f"removed {counted(removed, 'result')} of your oldest jobs from {place} ({freed / 1e6:.0f} MB): there "
        f"are {most} at most, of {most_mb} MB together ([results]); what lies elsewhere (out=DIR, report=PATH) stays"
    )


def _is_time(stamp: Path, now: float) -> bool:
    try:
        if 0 <= now - stamp.stat().st_mtime < LOOKED_S:
            return False
    except OSError:
        pass
    try:
        stamp.touch()
        os.utime(stamp, (now, now))
    except OSError:
        return False  # then nothing can be removed either
    return True


def _entries(directory: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for number, entry in enumerate(entries):
            if number >= _ENTRIES_MOST:
                return
            if _job_of(entry.name) is not None:  # nothing else is ours
                yield Path(entry.path)


def _job_of(name: str) -> int | None:
    match = _RESULT.fullmatch(name)
    return int(match[1]) if match else None


def _weighed(path: Path) -> tuple[float, int, Path] | None:
    """Return when a result changed last, how many bytes it takes, and its path."""
    try:
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode):
            return status.st_mtime, status.st_size, path
        inside = [entry.stat(follow_symlinks=False) for entry in os.scandir(path)]
    except OSError:
        return None
    return max([status.st_mtime, *(one.st_mtime for one in inside)]), sum(one.st_size for one in inside), path


def _remove(path: Path) -> bool:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    except OSError:
        return False
    return True
