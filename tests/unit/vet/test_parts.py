"""Long lines in pieces, and lists of hosts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from piolet.base import hostlist
from piolet.base.errors import SlurmError
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


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("", []),
        ("node1", ["node1"]),
        ("a,b", ["a", "b"]),
        ("node[1-3,7]", ["node1", "node2", "node3", "node7"]),
        ("gpu[008-011],login", ["gpu008", "gpu009", "gpu010", "gpu011", "login"]),
        ("x[1-2]y[3-4]", ["x1y3", "x1y4", "x2y3", "x2y4"]),
    ],
)
def test_lists_of_hosts(text: str, hosts: list[str]) -> None:
    assert hostlist.expand(text) == hosts


@pytest.mark.parametrize(
    "text", ["n[1", "n]1", "n[3-1]", "n[a-b]", "n[[1]]", "n[1-999999999]", "n[]", "n[0-99999][0-9]"]
)
def test_what_is_no_list_of_hosts(text: str) -> None:
    with pytest.raises(SlurmError, match="list of hosts"):
        hostlist.expand(text)
