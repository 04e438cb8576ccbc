"""The spool: what a user says never stands where the kernel's word does, and no user pushes out another's verdicts."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from piolet.node.server import spool
from piolet.node.server.spool import Spool, Who

ALICE, BOB = Who(1001, 11, "7", "0", "cgroup"), Who(1002, 12, "8", "3", "slurmstepd")


def line(said: object = None, **more: Any) -> bytes:
    return json.dumps(
        {"origin": "user", "kind": None, "plan": None, "said": said or {"outcome": "pass"}, **more}
    ).encode()


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Spool]:
    yield Spool(str(tmp_path), "node1")


def lines(directory: Path, who: Who) -> list[dict[str, Any]]:
    found = []
    for path in sorted(directory.glob(f"verdicts-{who.uid}*.jsonl")):
        found += [json.loads(text) for text in path.read_text("ascii").splitlines()]
    return found


def test_a_record_says_whose_it_is(tmp_path: Path, kept: Spool) -> None:
    kept.put(ALICE, line({"outcome": "pass"}, origin="built-in", kind="limits", plan="sha256:1"))
    kept.flush()
    (one,) = lines(tmp_path, ALICE)
    assert one.pop("time") == pytest.approx(time.time(), abs=20)
    assert one == {
        "record": "verdict", "node": "node1", "uid": 1001, "pid": 11, "job": "7", "step": "0", "found": "cgroup",
        "word": "user", "origin": "built-in", "kind": "limits", "plan": "sha256:1", "said": {"outcome": "pass"},
    }  # fmt: skip


@pytest.mark.parametrize(
    "data",
    [
        line(node="node2"),
        line(uid=0, job="1"),
        line(word="pioletd"),
        line(origin="root"),
        line(origin=["site"]),
        line(kind="gpu_health\n"),
        line(kind="k" * 300),
        line(plan=7),
        line([1]),
        b'{"node":"node2","job":"1","kind":"gpu_health","outcome":"fail","reason":"Xid 79"}',
        line().replace(b'"pass"', b"NaN"),
        line().replace(b'"pass"', b"1e999"),
        line().replace(b'"pass"', b"[" * 5000),
        b"[]",
        b"",
        b"\xff",
        b"x" * (spool.LINE_MAX + 1),
    ],
)
def test_a_line_that_is_none_becomes_a_record_that_says_so(tmp_path: Path, kept: Spool, data: bytes) -> None:
    kept.put(ALICE, data)
    kept.put(ALICE, line())
    kept.flush()
    first, second = lines(tmp_path, ALICE)
    for one in (first, second):
        envelope = {name: one[name] for name in ("node", "uid", "pid", "job", "step", "word", "origin", "kind", "plan")}
        assert envelope == {"node": "node1", "uid": 1001, "pid": 11, "job": "7", "step": "0", "word": "user",
                            "origin": "user", "kind": None, "plan": None}  # fmt: skip
    assert first["said"] in ({"unreadable": f"{len(data)} bytes"}, {"left out": f"{len(data)} bytes"})


def test_keys_that_are_said_stay_below_said(tmp_path: Path, kept: Spool) -> None:
    said = {"node": "node2", "uid": 0, "job": "1", "word": "pioletd", "record": "dropped"}
    kept.put(ALICE, line(said))
    kept.flush()
    (one,) = lines(tmp_path, ALICE)
    assert one["said"] == said and one["node"] == "node1" and one["uid"] == 1001 and one["record"] == "verdict"


def test_one_user_pushes_out_nobody(tmp_path: Path, kept: Spool) -> None:
    """Row 11 of the attacks: 12 connections with 150 verdicts of 2 kB each, and then as fast as it goes."""
    kept.put(BOB, line({"outcome": "fail", "reason": "his"}))
    for _ in range(20):
        for _ in range(1800):
            kept.put(ALICE, line({"outcome": "pass", "reason": "x" * 2000}))
        kept.flush()
    kept.put(BOB, line({"outcome": "fail", "reason": "another of his"}))
    end = time.monotonic() + 20
    while not (told := [one for one in lines(tmp_path, ALICE) if one["record"] == "dropped"]):
        assert time.monotonic() < end, "nobody says what was dropped"
        time.sleep(0.05)
    kept.flush()
    assert [one["said"]["reason"] for one in lines(tmp_path, BOB)] == ["his", "another of his"]
    assert sum(path.stat().st_size for path in tmp_path.glob("verdicts-1001*")) < 2 * spool._BYTES_AT_ONCE
    assert told[0]["uid"] == 1001 and told[0]["node"] == "node1" and set(told[0]) == {
        "record", "time", "node", "uid", "lines", "bytes"
    }  # fmt: skip
    # Of 36,000 lines each is written or counted.
    while True:
        found = lines(tmp_path, ALICE)
        written = sum(one["record"] == "verdict" for one in found)
        if written + sum(one.get("lines", 0) for one in found) == 36000:
            break
        assert time.monotonic() < end + 10, "lines are neither written nor counted"
        time.sleep(0.1)


def test_a_users_files_are_their_own(tmp_path: Path, kept: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the bound for all, the oldest of whoever has most goes."""
    monkeypatch.setattr(spool, "_FILE_BYTES", 1000)
    monkeypatch.setattr(spool, "_TOTAL_BYTES", 6000)
    kept.put(BOB, line({"reason": "his"}))
    for number in range(100):
        kept.put(ALICE, line({"reason": f"{number} {'x' * 300}"}))
        kept.flush()
    assert len(lines(tmp_path, BOB)) == 1
    assert len(list(tmp_path.glob("verdicts-1001*"))) <= spool._USERS_FILES_MAX
    assert lines(tmp_path, ALICE)[-1]["said"]["reason"].startswith("99 ") or any(
        one["said"]["reason"].startswith("99 ") for one in lines(tmp_path, ALICE)
    )
    for uid in range(2000, 2030):
        kept.put(Who(uid, 1), line({"reason": "x" * 500}))
        kept.flush()
    sizes = [path.stat().st_size for path in tmp_path.glob("verdicts-*")]
    assert sum(sizes) <= 6000 + 1000
    assert not list(tmp_path.glob("verdicts-1001-*")), "alice had most, and goes first"


def test_a_disk_that_takes_nothing_is_counted(tmp_path: Path) -> None:
    kept = Spool(str(tmp_path / "missing"), "node1")
    kept.put(ALICE, line())
    kept.flush()
    os.mkdir(tmp_path / "missing")
    end = time.monotonic() + 20
    while not lines(tmp_path / "missing", ALICE):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert lines(tmp_path / "missing", ALICE)[0]["lines"] == 1
