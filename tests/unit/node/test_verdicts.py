"""Verdicts as events: what a user says never stands where the kernel's word does, and nothing vanishes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from piolet.events.kinds import KINDS
from piolet.events.spool import Spool
from piolet.node.server import verdicts
from piolet.node.server.verdicts import Verdicts, Who

from tests.support import spools

ALICE, BOB = Who(1001, 11, "7", "0", "cgroup"), Who(1002, 12, "8", "3", "slurmstepd")
_NONE = {"origin": "user", "kind": None, "plan": None, "protocol": None, "release": None}


def line(said: object = None, **more: Any) -> bytes:
    return json.dumps({**_NONE, "said": said or {"outcome": "pass"}, **more}).encode()


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[tuple[Spool, Verdicts]]:
    spool, own = spools.spool(tmp_path)
    yield spool, own
    spool.close()


def test_a_record_says_whose_it_is(tmp_path: Path, kept: tuple[Spool, Verdicts]) -> None:
    said = {
        "eval": "temp", "outcome": "fail", "reason": "too hot", "value": 99, "limit": 90.5, "unit": "degC",
        "judge": "limit", "subject": "gpu:GPU-1", "serial": "SN1", "node": "node2", "details": {"a": 1},
    }  # fmt: skip
    more = {"origin": "built-in", "kind": "limits", "plan": "sha256:1", "protocol": "p", "release": "1.0"}
    kept[1].put(ALICE, line(said, **more))
    kept[0].flush()
    (one,) = spools.events(tmp_path, "vet.verdict")
    assert one["body"] == {
        "eval": "temp", "code": "limits", "release": "1.0", "origin": "built-in", "plan": "sha256:1", "protocol": "p",
        "state": "fail", "judge": "limit", "value": 99, "limit": 90.5, "unit": "degC", "serial": "SN1",
        "reason": "too hot", "said": {"node": "node2", "details": {"a": 1}}, "pid": 11, "found": "cgroup",
    }  # fmt: skip
    assert one["body"].keys() <= KINDS["vet.verdict"].body.keys() | {"pid"}
    assert (one["node"], one["uid"], one["job"], one["step"], one["source"], one["subject"]) == (
        "node1", 1001, 7, "0", "user", "gpu:GPU-1",
    )  # fmt: skip


@pytest.mark.parametrize(
    "data",
    [
        line(node="node2"),
        line(uid=0, job="1"),
        line(source="root"),
        line(origin="root"),
        line(origin=["site"]),
        line(kind="gpu_health\n"),
        line(kind="k" * 300),
        line(plan=7),
        line(release={"x": 1}),
        line([1]),
        b'{"node":"node2","job":"1","kind":"gpu_health","outcome":"fail","reason":"Xid 79"}',
        b'{"refused":7}',
        b'{"refused":"x","uid":0}',
        line().replace(b'"pass"', b"NaN"),
        line().replace(b'"pass"', b"1e999"),
        line().replace(b'"pass"', b"[" * 5000),
        b"[]",
        b"",
        b"\xff",
        b"x" * (verdicts.LINE_MAX + 1),
    ],
)
def test_a_line_that_is_none_becomes_a_record_that_says_so(
    tmp_path: Path, kept: tuple[Spool, Verdicts], data: bytes
) -> None:
    kept[1].put(ALICE, data)
    kept[1].put(ALICE, line())
    kept[0].flush()
    first, second = spools.events(tmp_path, "vet.verdict")
    for one in (first, second):
        assert {name: one[name] for name in ("node", "uid", "pid", "job", "step", "source", "origin")} == {
            "node": "node1", "uid": 1001, "pid": 11, "job": 7, "step": "0", "source": "user", "origin": "user",
        }  # fmt: skip
        assert "code" not in one and "plan" not in one
    assert first["said"] in ({"unreadable": f"{len(data)} bytes"}, {"left out": f"{len(data)} bytes"})


@pytest.mark.parametrize(
    "said",
    [
        {"node": "node2", "uid": 0, "job": "1", "source": "root"},
        {"value": "1", "limit": [1], "unit": 3, "reason": {}, "eval": None, "serial": 5, "judge": 1, "outcome": []},
        {"subject": "gpu:a b"}, {"subject": "node:x"}, {"subject": 5}, {"subject": "gpu:" + "x" * 300},
        {"value": True}, {"reason": "x" * 9000}, {"details": {"deep": [[[[[[[[[[1]]]]]]]]]]}}, {"n": 2**70},
    ],
)  # fmt: skip
def test_whatever_is_said_is_a_record(tmp_path: Path, kept: tuple[Spool, Verdicts], said: dict[str, Any]) -> None:
    kept[1].put(ALICE, line(said))
    kept[0].flush()
    kept[0].close()
    (one,) = spools.events(tmp_path, "vet.verdict")
    assert (one["node"], one["uid"], one["job"], one["source"]) == ("node1", 1001, 7, "user")
    assert one["subject"] == ""
    assert all(
        isinstance(one.get(name, 0.0), float) and math.isfinite(one.get(name, 0.0)) for name in ("value", "limit")
    )


def test_what_is_long_is_cut_with_a_mark(tmp_path: Path, kept: tuple[Spool, Verdicts]) -> None:
    """A record over 4 KiB used to vanish, and one over the envelope's limit would."""
    said = {"eval": "e", "outcome": "fail", "reason": "x" * 3000, "details": {"lines": ["y" * 100] * 100, "n": 1}}
    kept[1].put(ALICE, line(said))
    kept[0].flush()
    (one,) = spools.events(tmp_path, "vet.verdict")
    assert one["reason"].startswith("xxx") and one["reason"].endswith("(cut, 3000 characters)")
    assert one["state"] == "fail" and one["eval"] == "e"
    assert one["said"] == {"details": {"lines": ["y" * 100] * 100, "n": 1}}


def test_a_pass_with_a_reason_is_a_warning(tmp_path: Path, kept: tuple[Spool, Verdicts]) -> None:
    for said in ({"outcome": "pass", "reason": "old"}, {"outcome": "pass"}, {"outcome": "inconclusive", "reason": "x"}):
        kept[1].put(ALICE, line(said))
    kept[0].flush()
    assert [one["state"] for one in spools.events(tmp_path, "vet.verdict")] == ["warn", "pass", "inconclusive"]


def test_a_vetting_that_could_not_be_done_is_a_record(tmp_path: Path, kept: tuple[Spool, Verdicts]) -> None:
    kept[1].put(BOB, b'{"refused": "[Errno 30] Read-only file system"}')
    kept[1].refuse(BOB, "cannot fork for it: Cannot allocate memory")
    kept[0].flush()
    first, second = spools.events(tmp_path, "vet.refused")
    assert (first["by"], first["reason"]) == ("user", "[Errno 30] Read-only file system")
    assert (second["by"], second["reason"]) == ("root", "cannot fork for it: Cannot allocate memory")
    assert {one["source"] for one in (first, second)} == {"user"}, "a user can bring about either"
    assert (first["uid"], first["job"], first["step"]) == (1002, 8, "3")


def test_a_job_without_a_number_is_told_by_its_name(tmp_path: Path, kept: tuple[Spool, Verdicts]) -> None:
    kept[1].put(Who(1001, 5, "s00A1b2", "BATCH", "cgroup"), line())
    kept[1].put(Who(1001, 5), line())
    kept[0].flush()
    first, second = spools.events(tmp_path, "vet.verdict")
    assert (first["job"], first["sluid"], first["step"]) == (None, "s00A1b2", "batch")
    assert (second["job"], second["step"], second["found"]) == (None, "", "unknown")


def test_the_nodes_first_values_are_kept(tmp_path: Path) -> None:
    spool, own = spools.spool(tmp_path, past=tmp_path)
    said = {"outcome": "pass", "value": 7.5, "cached": False, "ran_on": {"cpus": 1}, "parameters": {}}
    own.put(ALICE, line(said, origin="built-in", kind="limits"))
    own.put(ALICE, line(said))
    spool.close()
    assert list(json.loads((tmp_path / "past.json").read_text()).values()) == [[[1001, 7.5]]]
