"""The envelope of events: what goes in comes out, and nothing else does."""

from __future__ import annotations

import dataclasses
import json

import pytest
from piolet.base.errors import EventError
from piolet.events.envelope import LINE_MAX, Event, LaterError, decode, encode
from piolet.events.kinds import KINDS

EVENT = Event(
    cluster="alps", node="nid001", epoch="0123456789abcdef", seq=7, time=1.5e9, kind="gpu.xid", source="kernel",
    boot="0b1c2d3e-0000-4000-8000-000000000000", severity="fatal", offset=-0.01, job=12, step="0+1", run=0, uid=1000,
    subject="gpu:GPU-1", body={"xid": 79, "nested": [{"a": None}]},
)  # fmt: skip


def test_what_is_encoded_is_decoded() -> None:
    line = encode(EVENT)
    assert line.endswith(b"\n") and line.count(b"\n") == 1
    assert decode(line) == EVENT
    assert decode(line).key == ("nid001", "0123456789abcdef", 7)


def test_what_is_not_said_is_left_out() -> None:
    bare = Event("alps", "nid001", "0123456789abcdef", 1, 0.0, "node.heartbeat", "root")
    assert json.loads(encode(bare)).keys() == {"cluster", "node", "epoch", "seq", "time", "kind", "source", "version"}
    assert decode(encode(bare)) == bare


@pytest.mark.parametrize(
    "change",
    [
        {"seq": 0}, {"seq": True}, {"seq": 2**63}, {"node": "../x"}, {"node": "a\nb"}, {"epoch": "0123456789ABCDEF"},
        {"time": float("nan")}, {"time": "1"}, {"source": "god"}, {"severity": "bad"}, {"kind": "xid"}, {"job": -1},
        {"uid": 2**32 - 1}, {"subject": "a\x1b[1m"}, {"subject": "x" * 257}, {"version": 2}, {"body": []},
        {"body": {"n": 2**64}}, {"body": {"n": float("inf")}},
        {"body": {"a": {"a": {"a": {"a": {"a": {"a": {"a": {"a": {"a": 1}}}}}}}}}},
        {"step": "0;drop"}, {"Extra": 1}, {"extra; drop": 1}, {"extra": 2**64}, {"extra": None}, {"version": 0},
        {"extra": {"a": {"a": {"a": {"a": {"a": {"a": {"a": {"a": {"a": 1}}}}}}}}}},
    ],
)  # fmt: skip
def test_another_record_is_refused(change: dict[str, object]) -> None:
    said = {**json.loads(encode(EVENT)), **change}
    with pytest.raises(EventError):
        decode(json.dumps(said).encode())


def test_a_field_of_a_later_release_is_kept() -> None:
    line = json.dumps({**json.loads(encode(EVENT)), "rack": "r7", "more": [1]}, separators=(",", ":")).encode()
    event = decode(line)
    assert event.more == {"rack": "r7", "more": [1]} and dataclasses.replace(event, more={}) == EVENT
    assert json.loads(encode(event)) == json.loads(line) and decode(encode(event)) == event


def test_a_version_of_a_later_release_is_told_from_what_is_damaged() -> None:
    """Whoever forwards it must not take it for rubbish."""
    said = {**json.loads(encode(EVENT)), "version": 2, "source": "an oracle"}
    with pytest.raises(LaterError, match="version 2"):
        decode(json.dumps(said).encode())


@pytest.mark.parametrize("line", [b"", b"{", b"[]", b"1", b"{}", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_record_is_refused(line: bytes) -> None:
    with pytest.raises(EventError):
        decode(line[:LINE_MAX])


def test_a_record_that_is_too_long_is_refused_on_both_sides() -> None:
    with pytest.raises(EventError, match="bytes long"):
        encode(dataclasses.replace(EVENT, body={"text": "x" * LINE_MAX}))
    with pytest.raises(EventError, match="bytes long"):
        decode(b" " * (LINE_MAX + 1))


def test_kinds_are_names_of_the_envelope() -> None:
    for kind in KINDS.values():
        event = dataclasses.replace(EVENT, kind=kind.name, source=kind.sources[0], body=dict.fromkeys(kind.body))
        assert decode(encode(event)).kind == kind.name
