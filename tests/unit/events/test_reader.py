"""Reading a spool while it is written, closed and removed; and one that somebody else made."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from piolet.events import parts, stream
from piolet.events.envelope import LINE_MAX, UNNUMBERED, USER, Event, encode, number_of, numbered
from piolet.events.parts import Part
from piolet.events.reader import Reader
from piolet.events.stream import Stream, Writer

BOOT = "0b1c2d3e-0000-4000-8000-000000000000"
NODE1 = Writer("alps", "node1", BOOT)


def draft(size: int = 10) -> bytes:
    event = Event("alps", "node1", *UNNUMBERED, 1.0, "vet.verdict", USER, BOOT, uid=1001, body={"reason": "x" * size})
    return encode(event)


def numbers(lines: list[bytes]) -> list[int]:
    return [found[1] for line in lines if (found := number_of(line)) is not None]


def test_a_line_is_numbered_and_its_number_read() -> None:
    hostile = {"reason": '"epoch":"0000000000000000","seq":9223372036854775807'}
    line = encode(Event("alps", "n", *UNNUMBERED, 1.0, "vet.verdict", USER, BOOT, body=hostile))
    done = numbered(line, "0123456789abcdef", 12)
    assert number_of(done) == ("0123456789abcdef", 12) and b"9223372036854775807" in done
    for other in (b"", b"{}", b'{"epoch":"0123456789abcdef","seq":1}', done[1:]):
        assert number_of(other) is None


def test_lines_come_in_order_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "FILE_BYTES", 700)
    one = Stream(str(tmp_path), 1001, NODE1)
    assert one.append([draft()] * 50) == 50
    reader = Reader(str(tmp_path))
    assert len(list(tmp_path.iterdir())) > 5
    assert reader.streams() == {one.epoch: 50}
    assert numbers(reader.read(one.epoch, 0, 3, 1 << 20)) == [1, 2, 3]
    assert numbers(reader.read(one.epoch, 3, 100, 3 * len(draft()))) == [4, 5, 6]
    assert numbers(reader.read(one.epoch, 6, 2, 1)) == [7]
    assert numbers(reader.read(one.epoch, 7, 100, 1 << 20)) == list(range(8, 51))
    assert reader.read(one.epoch, 50, 100, 1 << 20) == []
    assert numbers(reader.read(one.epoch, 1, 2, 1 << 20)) == [2, 3], "a service that was restored"
    assert reader.read("f" * 16, 0, 100, 1 << 20) == []


def test_a_file_that_may_not_be_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Once; the other streams are read meanwhile, and it is as soon as it may be."""
    mine, other = Stream(str(tmp_path), None, NODE1), Stream(str(tmp_path), 1001, NODE1)
    for one in (mine, other):
        one.append([draft()])
    reader, opened = Reader(str(tmp_path)), parts.open_part

    def refused(directory: str, part: Part, flags: int = os.O_RDONLY) -> int:
        if part.uid is None:
            raise PermissionError(13, "Permission denied")
        return opened(directory, part, flags)

    monkeypatch.setattr(parts, "open_part", refused)
    assert reader.streams() == {other.epoch: 1}
    path = tmp_path / mine.part.name if mine.part else tmp_path
    os.utime(path)  # pioletd writes on
    assert reader.streams() == {other.epoch: 1}
    (said,) = caplog.messages
    assert said.startswith(f"{path}: permission denied")
    monkeypatch.setattr(parts, "open_part", opened)
    os.utime(path)
    assert reader.streams() == {mine.epoch: 1, other.epoch: 1}


def test_half_a_line_is_none_until_it_is_whole(tmp_path: Path) -> None:
    one = Stream(str(tmp_path), None, NODE1)
    one.append([draft()])
    (path,) = tmp_path.iterdir()
    line = numbered(draft(), one.epoch, 2)
    reader = Reader(str(tmp_path))
    with path.open("ab", buffering=0) as file:
        file.write(line[:50])
        assert reader.streams() == {one.epoch: 1}
        assert numbers(reader.read(one.epoch, 0, 10, 1 << 20)) == [1]
        file.write(line[50:])
    assert reader.streams() == {one.epoch: 2}
    assert reader.read(one.epoch, 1, 10, 1 << 20) == [line]


def test_files_that_are_removed_are_a_hole_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "FILE_BYTES", 1)
    one = Stream(str(tmp_path), 1001, NODE1)
    one.append([draft()] * 10)
    reader = Reader(str(tmp_path))
    assert numbers(reader.read(one.epoch, 0, 2, 1 << 20)) == [1, 2]
    for path in sorted(tmp_path.iterdir())[:4]:
        path.unlink()
    assert numbers(reader.read(one.epoch, 2, 100, 1 << 20)) == [5, 6, 7, 8, 9, 10]
    for path in tmp_path.iterdir():
        path.unlink()
    assert reader.read(one.epoch, 5, 100, 1 << 20) == [] and reader.streams() == {}
    with pytest.raises(FileNotFoundError):
        Reader(str(tmp_path / "none")).streams()


def test_what_is_no_stream_is_passed_over(tmp_path: Path) -> None:
    epoch = "0123456789abcdef"
    good = [numbered(draft(), epoch, seq) for seq in (5, 6)]
    for name in ("node-0123456789abcdef-1.jsonl", f"uid-1001-{epoch.upper()}-{1:020d}.jsonl", "past.json", "node-x"):
        (tmp_path / name).write_bytes(good[0])
    os.symlink("/etc/passwd", tmp_path / f"node-{'a' * 16}-{1:020d}.jsonl")
    os.mkfifo(tmp_path / f"node-{'b' * 16}-{1:020d}.jsonl")
    (tmp_path / f"node-{'c' * 16}-{1:020d}.jsonl").mkdir()
    reader = Reader(str(tmp_path))
    assert reader.streams() == {}
    for other in "abc":
        assert reader.read(other * 16, 0, 100, 1 << 20) == []
    strange = numbered(draft(), "f" * 16, 7)
    (tmp_path / f"node-{epoch}-{5:020d}.jsonl").write_bytes(
        b"".join([good[1], good[0], b"{}\n", strange, b"\0\n", numbered(draft(), epoch, 9)])
    )
    assert reader.streams() == {epoch: 9}
    assert numbers(reader.read(epoch, 0, 100, 1 << 20)) == [6, 9]
    (tmp_path / f"node-{'d' * 16}-{1:020d}.jsonl").write_bytes(b"x" * (1 << 20))
    assert reader.read("d" * 16, 0, 100, 1 << 20) == []
    (tmp_path / f"node-{'e' * 16}-{1:020d}.jsonl").write_bytes(
        numbered(draft(LINE_MAX - 1000), "e" * 16, 1) + b"y" * (3 * LINE_MAX) + b"\n"
    )
    assert reader.streams()["e" * 16] == 1
