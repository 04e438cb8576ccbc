"""What a restarted pioletd believes of earlier steps: not a pid that was used again, not a name that leads out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from piolet.base.errors import PioletError
from piolet.node import places
from piolet.node.root.state import Known, StepFiles
from piolet.system import processes


def test_a_pid_that_was_used_again_is_not_mistaken() -> None:
    started = processes.start_time(os.getpid())
    assert started is not None
    assert Known("1.0", os.getpid(), started).alive()
    assert not Known("1.0", os.getpid(), started - 1).alive(), "another process had this pid"
    assert not Known("1.0", os.getpid(), None).alive(), "the slurmstepd had ended when it was noted"
    child = subprocess.Popen([sys.executable, "-c", ""])
    born = processes.start_time(child.pid)
    child.wait()
    assert not Known("1.0", child.pid, born).alive()


def test_notes_are_read_back(tmp_path: Path) -> None:
    files = StepFiles(str(tmp_path / "steps"))
    assert (tmp_path / "steps").stat().st_mode & 0o777 == 0o700
    known = Known("7.1", os.getpid(), processes.start_time(os.getpid()))
    files.write(known)
    assert files.read() == [known]
    files.remove("7.1")
    files.remove("7.1")
    assert files.read() == [] and list((tmp_path / "steps").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("7.1", ""),
        ("7.1", "{"),
        ("7.1", "[]"),
        ("7.1", '{"peer": 1}'),
        ("7.1", '{"peer": "x", "started": 1}'),
        ("7.1.tmp", json.dumps({"peer": 1, "started": 1})),
        ("etc", json.dumps({"peer": 1, "started": 1})),
    ],
)
def test_broken_notes_are_removed(tmp_path: Path, name: str, text: str) -> None:
    files = StepFiles(str(tmp_path))
    (tmp_path / name).write_text(text)
    assert files.read() == [] and not (tmp_path / name).exists()


def test_a_note_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    files = StepFiles(str(tmp_path / "steps"))
    (tmp_path / "steps").rmdir()
    files.write(Known("7.1", os.getpid(), None))


def test_a_directory_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PioletError, match=r"cannot make .*/file/steps"):
        StepFiles(str(tmp_path / "file" / "steps"))


def test_what_is_in_the_place_of_a_socket_is_said(tmp_path: Path) -> None:
    place = tmp_path / "node.sock"
    place.touch()
    with pytest.raises(PioletError, match=f"cannot listen on {place}: Address already in use") as raised:
        places.listener_at(place, 0o600)
    assert raised.value.hint == "remove what is there instead of it"
