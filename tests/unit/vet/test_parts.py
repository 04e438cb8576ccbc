"""Long lines in pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from piolet.vet.runner import parts, records


def long_line(text: str) -> bytes:
    return records.encode("verdict", {"node": "n1", "reason": text})


@given(st.text(max_size=3000))
def test_what_was_split_is_joined(text: str) -> None:
    line = long_line(text)
    joiner = parts.Joiner()
    sent = parts.split(line).splitlines(keepends=True)
    assert all(len(one) <= parts.LINE_MAX for one in sent)
    found = [joiner.take(1, one) for one in sent]
    assert found[:-1] == [None] * (len(sent) - 1)
    assert found[-1] is not None and found[-1].rstrip(b"\n") == line.rstrip(b"\n")


def test_quotes_make_no_piece_too_long() -> None:
    assert max(map(len, parts.split(long_line('"\\' * 20_000)).splitlines(keepends=True))) <= parts.LINE_MAX


def test_nodes_do_not_mix() -> None:
    joiner = parts.Joiner()
    one, two = (parts.split(long_line(letter * 2000)).splitlines() for letter in "ab")
    whole = []
    for first, second in zip(one, two, strict=True):
        whole += [joiner.take("n1", first), joiner.take("n2", second)]
    assert [line for line in whole if line] == [long_line("a" * 2000).rstrip(), long_line("b" * 2000).rstrip()]


def test_a_missing_piece_costs_one_line() -> None:
    joiner = parts.Joiner()
    broken = parts.split(long_line("a" * 2000)).splitlines()
    del broken[1]
    good = parts.split(long_line("b" * 2000)).splitlines()
    whole = [line for piece in [*broken, *good] if (line := joiner.take(1, piece))]
    assert whole == [long_line("b" * 2000).rstrip()]


@pytest.mark.parametrize("count", [10**9, -1, 0, "3", None])
def test_a_forged_piece_is_dropped(count: object) -> None:
    joiner = parts.Joiner()
    piece = records.encode("part", {"id": "x", "number": 0, "of": count, "text": "y"})
    assert joiner.take(1, piece) in (None, b"y")
