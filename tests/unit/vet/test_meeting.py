"""What the coordinator sends and what a node makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from piolet.base.errors import VetError
from piolet.vet.runner import meeting, records
from piolet.vet.runner.meeting import Orders, Row


def rows(count: int) -> list[Row]:
    return [Row(f"n{at}", f"10.0.{at >> 8}.{at & 255}", 30000 + at) for at in range(count)]


def told(node: str, lines: Sequence[bytes], by_pairs: bool = True) -> list[meeting.Assembly | None]:
    """Return what a node makes of the lines."""
    orders = Orders(node)
    decoded = [records.decode(line) for line in lines]
    return [orders.take(*one, by_pairs) for one in decoded if one is not None]


def test_a_table_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every line is below the limit, whatever it is."""
    monkeypatch.setattr(records, "LINE_MAX", 700)
    lines = list(meeting.table_lines(rows(300)))
    assert len(lines) > 3 and all(len(line) < 700 for line in lines)
    meet = meeting.line("meet", {"eval": "e", "round": 1, "pairs": [[2, 7]]})
    found = told("n2", [*lines, meet])[-1]
    assert found is not None and found.members == ("n2", "n7") and found.peer == rows(300)[7]


def test_ten_thousand_nodes_are_a_handful_of_lines() -> None:
    lines = list(meeting.table_lines(rows(10_000)))
    assert sum(map(len, lines)) < 200_000
    assert max(map(len, lines)) < records.LINE_MAX


@pytest.mark.parametrize("wrong", [1, 2])
def test_a_table_of_which_a_part_is_missing(wrong: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "LINE_MAX", 700)
    lines = list(meeting.table_lines(rows(300)))
    del lines[wrong]
    with pytest.raises(VetError, match="malformed"):
        told("n2", lines)


def test_who_is_in_no_row_does_nothing() -> None:
    meet = meeting.line("meet", {"eval": "e", "round": 1, "seed": 1, "turn": 0})
    assert told("stranger", [*meeting.table_lines(rows(4)), meet])[-1] is None


def test_nobody_meets_who_is_gone() -> None:
    table, gone = list(meeting.table_lines(rows(4))), list(meeting.gone_lines([3]))
    pair = meeting.line("meet", {"eval": "e", "round": 1, "pairs": [[2, 3]]})
    together = meeting.line("meet", {"eval": "e", "round": 1, "all": 64})
    found = told("n2", [*table, *gone, pair, together], by_pairs=False)
    assert found[-2] is None
    assert found[-1] is not None and found[-1].members == ["n0", "n1", "n2"]


def test_who_has_no_address_is_in_no_pair_that_needs_one() -> None:
    some = [*rows(3), Row("n3")]
    assert meeting.scheduled(some, 1, by_pairs=True) == [one for one in meeting.scheduled(some, 1, False) if one != 3]
    meet = [meeting.line("meet", {"eval": "e", "round": 1, "seed": 1, "turn": turn}) for turn in range(3)]
    assert told("n3", [*meeting.table_lines(some), *meet])[1:] == [None] * 3


def test_many_pairs_are_several_lines() -> None:
    pairs = [(at, at + 5000) for at in range(5000)]
    lines = list(meeting.pair_lines({"eval": "e", "round": 1}, pairs))
    assert len(lines) > 1 and max(map(len, lines)) < records.LINE_MAX
    found = [one for one in told("n4999", [*meeting.table_lines(rows(10_000)), *lines])[-len(lines) :] if one]
    assert len(found) == 1 and found[0].members == ("n4999", "n9999")


def test_a_line_that_is_too_long_is_never_sent() -> None:
    """It would be a round in which every node is 'no answer'."""
    with pytest.raises(VetError, match="more than the limit of 65536"):
        meeting.line("meet", {"eval": "e" * 70_000, "round": 1})


@pytest.mark.parametrize(
    "content",
    [
        {"eval": "e", "round": 1, "sets": [["n0", "n1"]], "where": {}},  # as before releases of 2026-12
        {"eval": "e", "round": 1, "seed": 1},
        {"eval": "e", "round": "x", "seed": 1, "turn": 1},
        {"eval": "e", "round": 1, "pairs": [[1, 99]]},
        {"eval": "e", "round": 1, "pairs": [[1]]},
    ],
)
def test_orders_of_another_release_are_said_to_be_so(content: dict[str, Any]) -> None:
    with pytest.raises(VetError, match="another release"):
        told("n1", [*meeting.table_lines(rows(4)), meeting.line("meet", content)])


def test_a_meeting_before_the_table() -> None:
    with pytest.raises(VetError, match="malformed"):
        told("n1", [meeting.line("meet", {"eval": "e", "round": 1, "seed": 1, "turn": 0})])


@pytest.mark.parametrize("text", ["", "????", "eJw="])
def test_a_table_of_rubbish(text: str) -> None:
    with pytest.raises(VetError, match="malformed"):
        told("n1", [meeting.line("table", {"part": 0, "of": 1, "digest": "", "text": text})])


def test_all_together_are_groups_of_about_equal_size() -> None:
    """10,752 ranks of one file would read it again and again until the last has come."""
    some = rows(131)
    lines = [*meeting.table_lines(some), *meeting.gone_lines([5])]
    lines.append(meeting.line("meet", {"eval": "e", "round": 1, "all": 64}))
    groups = {}
    for row in some:
        found = told(row.name, lines, by_pairs=False)[-1]
        assert (found is None) is (row.name == "n5")
        if found is not None:
            assert row.name in found.members
            groups[found.key] = tuple(found.members)
    assert sorted(map(len, groups.values())) == [43, 43, 44]
    assert sorted(sum(groups.values(), ())) == sorted(row.name for row in some if row.name != "n5")


@pytest.mark.parametrize("most", [True, 1, 0, -3, "x", None])
def test_a_group_of_less_than_two_is_another_releases(most: object) -> None:
    with pytest.raises(VetError, match="another release"):
        told("n1", [*meeting.table_lines(rows(4)), meeting.line("meet", {"eval": "e", "round": 1, "all": most})])
