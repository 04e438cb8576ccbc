"""Locks that are waited for, but not for ever."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from piolet.base import locks


def opened(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def test_one_holder_and_the_time_of_the_other(tmp_path: Path) -> None:
    holder, other = opened(tmp_path / "lock"), opened(tmp_path / "lock")
    assert locks.take(holder, 0.0), "a free lock is taken whatever the time"
    begun = time.monotonic()
    assert not locks.take(other, begun + 0.2)
    assert time.monotonic() - begun >= 0.2
    os.close(holder)
    assert locks.take(other, 0.0), "it is free when its holder has closed it"
    os.close(other)


def test_it_is_had_when_the_holder_ends_while_another_waits(tmp_path: Path) -> None:
    holder, other = opened(tmp_path / "lock"), opened(tmp_path / "lock")
    assert locks.take(holder, 0.0)
    timer = threading.Timer(0.2, os.close, [holder])
    timer.start()
    assert locks.take(other, time.monotonic() + 30)
    timer.join()
    os.close(other)


def test_what_has_no_locks_says_so() -> None:
    descriptor = os.open("/", os.O_PATH)
    with pytest.raises(OSError):
        locks.take(descriptor, time.monotonic() + 30)
    os.close(descriptor)
