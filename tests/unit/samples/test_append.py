"""A journal on a disk that is full: whole frames, the end, and that it was so."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from piolet.api import Reading
from piolet.base.errors import ScoreError
from piolet.samples import journal
from piolet.samples.append import Appender
from piolet.samples.dataset import Node
from piolet.samples.journals import journal_facts
from piolet.score import headlines

HEADER = {"version": 1, "node": "n", "job": "1", "step": "0", "start": 0, "origin": 0, "devices": [], "period": 1}
END = journal.json_frame("E", {"event": "end", "at": 40 * 10**9})


class Disk:
    """How much a file may hold, and a clock."""

    def __init__(self) -> None:
        self.room = 1 << 30
        self.seconds = 0
        self.code = errno.ENOSPC

    def write(self, fd: int, data: bytes) -> int:
        left = max(0, self.room - os.fstat(fd).st_size)
        if not left:
            raise OSError(self.code, os.strerror(self.code))
        return WRITE(fd, data[:left])


WRITE = os.write


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """A disk."""
    disk = Disk()
    monkeypatch.setattr(os, "write", disk.write)
    return disk


def second(at: int) -> bytes:
    """Return a second of samples."""
    pack = journal.Packer("G", ["sm"] * 1)
    return pack.frame([pack.pack(Reading(0, at * 10**9, 1.0, (0.5,)), (0,)) for _ in range(20)])


def written(path: Path, disk: Disk, full: Callable[[int], bool]) -> Appender:
    """Write 40 seconds; `full` says whether the disk is, in a second."""
    appender = Appender(journal.open_for_writing(str(path)), lambda: disk.seconds * 10**9)
    appender.add(journal.json_frame("H", HEADER | {"gpu_columns": ["sm"], "host_columns": []}))
    for disk.seconds in range(1, 41):
        disk.room = path.stat().st_size + 100 if full(disk.seconds) else 1 << 30
        # What comes through a pipe is cut anywhere.
        data = second(disk.seconds)
        appender.add(data[:30])
        appender.add(data[30:])
    appender.add(END)
    appender.finish()
    os.close(appender.fd)
    return appender


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_full_to_the_end(tmp_path: Path, disk: Disk, code: int) -> None:
    """The end is known, and since when nothing could be written."""
    path = tmp_path / "n.journal"
    disk.code = code
    appender = written(path, disk, lambda at: at >= 22)
    assert appender.lost == os.strerror(code)
    facts: Any = journal_facts(path)
    assert facts.complete and facts.end == 40 * 10**9
    (event,) = [event for event in facts.events if event["event"] == "full"]
    assert (event["since"], event["at"], event["dropped"]) == (22 * 10**9, 40 * 10**9, 20)
    assert [frame.kind for frame in journal.read(str(path))] == ["H", *"G" * 20, "E", "E"]
    assert path.stat().st_size == list(journal.read(str(path)))[-1].end
    text = headlines.disk_full(Node(path, facts))
    assert (
        text.startswith("disk full on n (")
        and "20 frames, each of up to a second of samples, lost from second 22.0 to 40.0" in text
    )


def test_full_for_a_while(tmp_path: Path, disk: Disk) -> None:
    """What fits again is written, behind the word of what did not."""
    path = tmp_path / "n.journal"
    written(path, disk, lambda at: 10 <= at < 20)
    kinds = [frame.kind for frame in journal.read(str(path))]
    assert kinds == ["H", *"G" * 9, "E", *"G" * 21, "E"]
    facts: Any = journal_facts(path)
    assert facts.complete and [event["dropped"] for event in facts.events if event["event"] == "full"] == [10]


def test_never_full(tmp_path: Path, disk: Disk) -> None:
    """Then nothing is said."""
    path = tmp_path / "n.journal"
    assert written(path, disk, lambda _: False).lost == ""
    assert [frame.kind for frame in journal.read(str(path))] == ["H", *"G" * 40, "E"]


def test_another_error_is_one(tmp_path: Path, disk: Disk) -> None:
    """And what is no journal is refused."""
    disk.code = errno.EIO
    with pytest.raises(OSError, match="Input/output error"):
        written(tmp_path / "n.journal", disk, lambda at: at >= 22)
    with pytest.raises(ScoreError, match="is no journal"):
        journal.split(b"x" * 20)
