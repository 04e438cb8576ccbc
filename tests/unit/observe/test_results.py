"""Where results of jobs are, and what happens to the oldest."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from piolet.observe import results

DAY = 86400.0
NOW = 1_800_000_000.0


def put(root: Path, name: str, days: float, size: int = 1000) -> Path:
    """Make a result that is so many days old: a directory where its name has no suffix."""
    path = root / "alps" / name
    if path.suffix == ".json":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
    else:
        path.mkdir(parents=True)
        (path / "n1.parquet").write_bytes(b"x" * size)
        os.utime(path / "n1.parquet", (NOW - days * DAY, NOW - days * DAY))
    os.utime(path, (NOW - days * DAY, NOW - days * DAY))
    return path


def room(root: Path, most: int = 1000, most_mb: int = 1000, now: float = NOW) -> str:
    return results.make_room(str(root / "alps"), most, most_mb, now)


def test_where_they_are() -> None:
    assert results.place_of({"HOME": "/h"}, "", "alice", "alps") == "/h/.local/state/piolet/alps"
    assert results.place_of({"HOME": "/h"}, "/scratch/%u/piolet", "alice", "alps") == "/scratch/alice/piolet/alps"
    assert results.place_of({}, "", "alice", "alps") is None
    assert results.score_out("/r/alps") == "/r/alps/score/%j.%s%r"
    assert results.vet_file("/r/alps", 112) == "/r/alps/vet/vet-112.json"


def test_what_is_found(tmp_path: Path) -> None:
    """Of the job that was asked for and no other, of this cluster; nothing that only looks like it."""
    place = str(tmp_path / "alps")
    own = [put(tmp_path, f"score/112.{name}", 1) for name in ("0", "0-r1", "1")]
    for name in ("score/1120.0", "score/11.0", "score/112x.0", "score/.112.0"):
        put(tmp_path, name, 1)
    (tmp_path / "daint/score/112.0").mkdir(parents=True)
    assert results.of_job(place, results.SCORE, 112) == own
    assert results.find(place, results.SCORE, "112.0") == own[0]
    assert results.find(place, results.SCORE, "../score/112.0") is results.find(place, results.SCORE, "112.7") is None
    assert results.of_job(None, results.SCORE, 112) == results.of_job(str(tmp_path / "no"), results.SCORE, 112) == []
    assert results.is_kept(own[0], place) and not results.is_kept(Path("/x/112.0"), place)


def test_the_oldest_go_first_and_it_is_said(tmp_path: Path) -> None:
    put(tmp_path, "vet/vet-1.json", 30)
    put(tmp_path, "score/2.0", 20)
    kept = [put(tmp_path, "vet/vet-3.json", 10), put(tmp_path, "score/4.0", 9)]
    said = room(tmp_path, most=2)
    assert "removed 2 results of your oldest jobs" in said and "[results]" in said and "out=DIR" in said
    assert sorted(path for path in (tmp_path / "alps").glob("*/*")) == sorted(kept)
    assert room(tmp_path, most=1) == ""  # it looked a moment ago
    assert "removed 1 result " in room(tmp_path, most=1, now=NOW + 2 * results.LOOKED_S)


def test_bytes_count_too(tmp_path: Path) -> None:
    for job, days in ((1, 30), (2, 20), (3, 10)):
        put(tmp_path, f"score/{job}.0", days, 700_000)
    assert "removed 2 results" in room(tmp_path, most_mb=1)
    assert [path.name for path in (tmp_path / "alps/score").iterdir()] == ["3.0"]


def test_nothing_young_goes_nor_what_is_not_ours(tmp_path: Path) -> None:
    """A step that runs writes to its data set; a file of the user's own is not looked at."""
    young = put(tmp_path, "score/1.0", 30)
    os.utime(young / "n1.parquet", (NOW - DAY, NOW - DAY))
    mine = put(tmp_path, "score/my notes", 30)
    put(tmp_path, "score/2.0", 2)
    assert room(tmp_path, most=1, most_mb=1) == ""
    assert young.exists() and mine.exists()


def test_a_link_is_removed_and_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    target.mkdir()
    (target / "precious").write_text("x")
    (tmp_path / "alps/score").mkdir(parents=True)
    link = tmp_path / "alps/score/1.0"
    link.symlink_to(target)
    os.utime(link, (NOW - 30 * DAY, NOW - 30 * DAY), follow_symlinks=False)
    put(tmp_path, "score/2.0", 20)
    assert "removed 1 result" in room(tmp_path, most=1)
    assert not link.is_symlink() and (target / "precious").exists()


def test_what_cannot_be_removed_is_not_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "no", str(path))

    put(tmp_path, "score/1.0", 30)
    put(tmp_path, "score/2.0", 20)
    monkeypatch.setattr(shutil, "rmtree", refuse)
    assert room(tmp_path, most=1) == ""
