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


def test_a_question_has_whatever_bytes_were_typed() -> None:
    """Also such as are no UTF-8, and stand in an argument as surrogates."""
    assert statements.question("/v1/node", {"name": "n&1=\udcff"}) == "/v1/node?name=n%261%3D%FF"
    assert statements.question("/v1/status", {}) == "/v1/status"
    longest = "x" * (2001 - len("/v1/node?name="))
    asked = dataclasses.replace(ONE, target=statements.question("/v1/node", {"name": longest}))
    assert Statement.parse(asked.payload()) == asked
    with pytest.raises(WireError, match="2002 characters long, more than the limit of 2001"):
        statements.question("/v1/node", {"name": longest + "x"})


def test_answers_are_of_one_request() -> None:
    one = statements.answer("MUNGE:a:", 200, b"{}")
    assert one != statements.answer("MUNGE:b:", 200, b"{}")
    assert one != statements.answer("MUNGE:a:", 403, b"{}")
    assert one != statements.answer("MUNGE:a:", 200, b"{} ")
