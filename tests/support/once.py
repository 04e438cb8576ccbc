"""What several processes of one run of tests need, made by the first of them and removed at the end of the run.

The workers of pytest-xdist are such processes: what one of them has as a fixture of its session no other has. A run is
known by the number of the process that was started first, which its workers inherit.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

BUILD = (Path(__file__).resolve().parents[2] / "build").resolve()
_RUN = "PIOLET_TEST_RUN"
_NAME = "test-run-"


def begin() -> None:
    """Be the process that was started first, unless there is one; what runs that were killed have left is removed."""
    if os.environ.get(_RUN):
        return
    os.environ[_RUN] = str(os.getpid())
    for place in BUILD.glob(f"{_NAME}*"):
        if not Path(f"/proc/{place.name.removeprefix(_NAME)}").exists():
            shutil.rmtree(place, ignore_errors=True)


def end() -> None:
    """Remove what the run has made, if this process has begun it."""
    if os.environ.get(_RUN) == str(os.getpid()):
        shutil.rmtree(_place(), ignore_errors=True)


def _place() -> Path:
    return BUILD / f"{_NAME}{os.environ[_RUN]}"


@contextlib.contextmanager
def room(name: str) -> Iterator[Path]:
    """Yield a directory of the run's, which users can enter, for this process alone: others wait until it is done."""
    place = _place() / name
    place.mkdir(parents=True, mode=0o755, exist_ok=True)
    with open(place / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield place


def own(name: str) -> Path:
    """Return the path of a directory of this process's alone, which is not there yet."""
    return _place() / os.environ.get("PYTEST_XDIST_WORKER", "one") / name
