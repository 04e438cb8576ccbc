"""The directory in which the tasks of a job meet."""

from __future__ import annotations

import os
import time
from pathlib import Path

from piolet.container import jobmarks


def test_it_is_made_and_what_is_old_goes(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    jobmarks.prepare(str(folder))
    for name, days in (("new", 1), ("old", 8)):
        (folder / name / "begun").mkdir(parents=True)
        os.utime(folder / name, (time.time() - days * 86400,) * 2)
    jobmarks.prepare(str(folder))
    assert os.listdir(folder) == ["new"] and folder.stat().st_mode & 0o777 == 0o700


def test_a_link_in_it_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim" / "x").mkdir(parents=True)
    folder = tmp_path / "marks"
    jobmarks.prepare(str(folder))
    os.symlink(tmp_path / "victim", folder / "old")
    os.utime(folder / "old", (0, 0), follow_symlinks=False)
    jobmarks.prepare(str(folder))
    assert (tmp_path / "victim" / "x").exists()
