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


def root_of(variables: Mapping[str, str], directory: str, user: str) -> str | None:
    """Return the directory of all of a user's results, None: there is no place for them."""
    if directory:
        return directory.replace("%u", user)
    return files.state_directory(variables)


def score_out(root: str, cluster: str) -> str:
    """Return where data sets of --score go, as `out=` says it."""
    return f"{root}/{cluster}/{SCORE}/%j.%s%r"


def vet_file(root: str, cluster: str, job: int) -> str:
    """Return where the result of a job's vetting goes."""
    return f"{root}/{cluster}/{VET}/vet-{job}.json"


def marks_place(root: str, cluster: str, job: int) -> str:
    """Return the directory that marks of a job go to."""
    return f"{root}/{cluster}/{MARKS}/{job}"


def places(root: str | None, kind: str, name: str) -> list[Path]:
    """Return where the results `name` of a kind are, of whichever cluster, the newest first."""
    if root is None or "/" in name or name in ("", ".", ".."):
        return []
    found = []
    for cluster in _clusters(root):
        path = cluster / kind / name
        with contextlib.suppress(OSError):
            found.append((path.lstat().st_mtime, path))
    return [path for _, path in sorted(found, reverse=True)]


def is_kept(path: Path, root: str) -> bool:
    """Return whether something lies below the directory of a user's results."""
    return Path(root) in path.parents


def of_job(root: str | None, kind: str, job: int) -> list[Path]:
    """Return all results of a kind that are of a job, in order of their names."""
    found = []
    for cluster in _clusters(root) if root is not None else ():
        found += [path for path in _entries(cluster / kind) if _job_of(path.name) == job]
    return sorted(found)


def every(root: str | None, kind: str) -> list[Path]:
    """Return all results of a kind, of all clusters."""
    return [path for cluster in (_clusters(root) if root is not None else ()) for path in _entries(cluster / kind)]


def make_room(root: str, cluster: str, most: int, most_mb: int, now: float | None = None) -> str:
    """Remove the oldest results of a cluster above the bounds; return what its user is told, '': nothing was removed.

    What changed in the last three days stays, whatever the bounds say. It looks once an hour.
    """
    now = time.time() if now is None else now
    if not _is_time(Path(root, cluster, _STAMP), now):
        return ""
    found = []
    for kind in KINDS:
        found += [one for path in _entries(Path(root, cluster, kind)) if (one := _weighed(path)) is not None]
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
        f"removed {counted(removed, 'result')} of your oldest jobs from {root}/{cluster} ({freed / 1e6:.0f} MB): there "
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


def _clusters(root: str) -> Iterator[Path]:
    with contextlib.suppress(OSError), os.scandir(root) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield Path(entry.path)


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
