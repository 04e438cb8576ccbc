"""What is signed of a request: what goes in comes out, and nothing else does."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from piolet.base.errors import WireError
from piolet.transport import statements
from piolet.transport.statements import Statement

ONE = Statement("POST", "/v1/events?gone=00000000000000a1:7", "alps", "nid001", "0" * 64, "12.5.ab", 1.7e9 + 0.125)


def test_what_is_stated_is_read() -> None:
    assert Statement.parse(ONE.payload()) == ONE
    bare = dataclasses.replace(ONE, cluster="", node="", nonce="")
    assert Statement.parse(bare.payload()) == bare


@pytest.mark.parametrize(
    "change",
    [{"method": "PUT"}, {"target": "v1"}, {"target": "/a b"}, {"target": "/" + "x" * 2001}, {"cluster": "../x"},
     {"node": "-n"}, {"digest": "0" * 63}, {"digest": "G" * 64}, {"nonce": "x" * 121}, {"sent": -1.0},
     {"node": "a\nb"}],
)  # fmt: skip
def test_another_statement_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(WireError):
        Statement.parse(dataclasses.replace(ONE, **change).payload())  # type: ignore[arg-type]


@given(st.binary(max_size=300))
def test_whatever_comes_is_read_or_refused(payload: bytes) -> None:
    with pytest.raises(WireError):
        Statement.parse(payload)


@given(st.integers(0, 200), st.integers(0, 255))
def test_a_changed_byte_is_another_statement_or_none(place: int, byte: int) -> None:
    payload = bytearray(ONE.payload())
    place %= len(payload)
    payload[place] = byte
    try:
        found = Statement.parse(bytes(payload))
    except WireError:
        return
    assert (found == ONE) == (bytes(payload) == ONE.payload())


def test_answers_are_of_one_request() -> None:
    one = statements.answer("MUNGE:a:", 200, b"{}")
    assert one != statements.answer("MUNGE:b:", 200, b"{}")
    assert one != statements.answer("MUNGE:a:", 403, b"{}")
    assert one != statements.answer("MUNGE:a:", 200, b"{} ")
