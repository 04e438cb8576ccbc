"""Pairs in rounds, suspects again, limits that peers set for each other."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from piolet.vet import localise
from piolet.vet.localise import Meeting
from piolet.vet.runner import schedule


@given(st.integers(min_value=0, max_value=33))
def test_everybody_meets_everybody_once_in_disjoint_pairs(count: int) -> None:
    nodes = [f"n{i}" for i in range(count)]
    found = [list(pairs) for pairs in localise.rounds(nodes)]
    for pairs in found:
        members = [node for pair in pairs for node in pair]
        assert len(members) == len(set(members))
    met = [frozenset(pair) for pairs in found for pair in pairs]
    assert sorted(map(sorted, met)) == sorted(map(sorted, combinations(nodes, 2)))
    if count >= 2:
        assert len(found) == (count - 1 if count % 2 == 0 else count)


def meet(nodes: list[str], slow: set[str], bad_pairs: set[frozenset[str]] = frozenset()) -> list[Meeting]:  # type: ignore[assignment]
    found = []
    for pairs in localise.rounds(nodes):
        for a, b in pairs:
            wrong = a in slow or b in slow or frozenset((a, b)) in bad_pairs
            found.append(Meeting((a, b), 2.0 if wrong else 10.0 + hash(a + b) % 7 / 100))
    return found


@settings(deadline=None)
@given(st.integers(min_value=5, max_value=20), st.data())
def test_the_slow_ones_are_named_and_no_others(count: int, data: st.DataObject) -> None:
    nodes = [f"n{i}" for i in range(count)]
    most = (count - 2) // 3
    slow = data.draw(st.sets(st.sampled_from(nodes), max_size=max(1, most)))
    found = meet(nodes, slow)
    faults, _ = localise.localise(found, "higher", 0.3)
    # A handful of slow pairs among few cannot set the median: then absolute limits have to.
    limit, _ = localise.bad_meetings(found, "higher", 0.3)
    if limit is not None and limit > 2.0:
        assert {fault.node for fault in faults} == slow


def test_a_bad_way_between_two_good_nodes_names_nobody() -> None:
    nodes = [f"n{i}" for i in range(8)]
    faults, notes = localise.localise(meet(nodes, set(), {frozenset(("n1", "n5"))}), "higher", 0.3)
    assert faults == []
    assert notes == ["the way between n1 and n5 is bad, but neither is with others"]


def test_when_all_are_bad_nobody_is_named() -> None:
    nodes = [f"n{i}" for i in range(4)]
    found = [Meeting(pair, 1.0, bad=True, reason="slow") for pairs in localise.rounds(nodes) for pair in pairs]
    faults, notes = localise.localise(found, "higher", 0.3)
    assert faults == []
    assert "most pairs are bad" in notes[0]


def test_two_nodes_alone_cannot_be_told_apart() -> None:
    faults, _ = localise.localise([Meeting(("a", "b"), 1.0, bad=True)], "higher", 0.3)
    assert faults == []


def test_a_node_that_nobody_can_reach_is_named() -> None:
    nodes = ["a", "b", "c", "d"]
    found = [
        Meeting(pair, None if "c" in pair else 5.0, "c" in pair, "refused" if "c" in pair else "")
        for pairs in localise.rounds(nodes)
        for pair in pairs
    ]
    faults, _ = localise.localise(found, "higher", 0.3)
    assert [fault.node for fault in faults] == ["c"]
    assert "refused" in faults[0].reason


def test_suspects_meet_different_good_nodes_again() -> None:
    nodes = [f"n{i}" for i in range(6)]
    again = localise.pair_again(["n0", "n1"], nodes)
    partners: dict[str, set[str]] = {"n0": set(), "n1": set()}
    for pairs in again:
        members = [node for pair in pairs for node in pair]
        assert len(members) == len(set(members))
        for suspect, partner in pairs:
            assert partner not in ("n0", "n1")
            partners[suspect].add(partner)
    assert all(len(found) == 2 for found in partners.values())
    assert list(localise.pair_again(nodes, nodes)) == []


def test_more_suspects_than_good_nodes_take_turns() -> None:
    again = localise.pair_again(["a", "b", "c"], ["a", "b", "c", "d", "e"])
    assert sorted(node for pairs in again for node, _ in pairs) == sorted(["a", "b", "c"] * 2)
    for pairs in again:
        assert len({partner for _, partner in pairs}) == len(pairs)


def test_alike_nodes_are_no_outliers() -> None:
    values = {f"n{i}": 100.0 + i * 0.001 for i in range(10)} | {"odd": 99.0}
    assert localise.outliers(values, "higher", 0.1)[1] == []  # 1 % is below the smallest effect
    values["odd"] = 80.0
    limit, beyond = localise.outliers(values, "higher", 0.1)
    assert beyond == ["odd"]
    assert limit == pytest.approx(90.0, abs=0.1)
    assert localise.outliers({node: -value for node, value in values.items()}, "lower", 0.1)[1] == ["odd"]


def test_scattered_values_set_a_wide_limit() -> None:
    values = {f"n{i}": float(value) for i, value in enumerate([50, 80, 100, 120, 150, 60, 140])}
    assert localise.outliers(values, "higher", 0.1)[1] == []


def test_too_few_peers_set_no_limit() -> None:
    assert localise.peer_limit([1.0, 100.0, 100.0], "higher", 0.1) is None


def test_the_odd_one_out_is_found_by_majority() -> None:
    facts = {"a": {"kernel": "6.1"}, "b": {"kernel": "6.1"}, "c": {"kernel": "5.14"}}
    assert localise.odd_ones(facts) == {"c": ["kernel is '5.14', not '6.1'"]}
    assert localise.odd_ones({"a": {"kernel": "6.1"}, "b": {"kernel": "5.14"}}) == {}
    assert localise.odd_ones({**facts, "d": {"kernel": "5.14"}}) == {}  # two and two: no majority


def switched(counts: dict[str, int]) -> dict[str, str]:
    """Return the switch of each node, as topology.conf would have it."""
    return {f"{switch}n{at}": switch for switch, count in counts.items() for at in range(count)}


def test_a_bad_way_between_two_switches_is_one_note() -> None:
    """64 ways would be 64 notes, of which nobody reads what they have in common."""
    leaf = switched({"a": 8, "b": 8, "c": 8})
    across = {frozenset((one, other)) for one in leaf for other in leaf if {leaf[one], leaf[other]} == {"a", "b"}}
    found = meet(list(leaf), set(), across)
    limit, bad = localise.bad_meetings(found, "higher", 0.3)
    faults, notes = localise.explain(found, limit, bad, leaf=leaf)
    assert faults == []
    assert notes == ["the ways between the switches a and b are bad: 64 of 64 meetings"]
    _, without = localise.explain(found, limit, bad)
    (note,) = without
    assert note.endswith(" and 55 more")


def test_a_switch_whose_nodes_are_all_bad_is_looked_at_first() -> None:
    leaf = switched({"a": 8, "b": 4})
    slow = {node for node, switch in leaf.items() if switch == "b"}
    found = meet(list(leaf), slow)
    faults, notes = localise.explain(found, *localise.bad_meetings(found, "higher", 0.3), leaf=leaf)
    assert {fault.node for fault in faults} == slow
    assert notes == ["all 4 nodes at the switch b are bad: look at it first"]
    # Not all of them: then it is no switch.
    found = meet(list(leaf), slow - {"bn0"})
    assert localise.explain(found, *localise.bad_meetings(found, "higher", 0.3), leaf=leaf)[1] == []


def test_a_few_bad_ways_are_no_switch() -> None:
    leaf = switched({"a": 8, "b": 8, "c": 8})
    some = {frozenset(("an0", "bn1")), frozenset(("an2", "bn3")), frozenset(("an4", "bn5"))}
    found = meet(list(leaf), set(), some)
    _, notes = localise.explain(found, *localise.bad_meetings(found, "higher", 0.3), leaf=leaf)
    (note,) = notes
    said = "the ways between two nodes are bad, but neither is with others: "
    assert note.startswith(said) and note.count(" and ") == 3


def test_partners_are_of_other_switches_for_the_most_part() -> None:
    """Drawn by lot: of K switches of equal size a share of 1 - 1/K, and every node meets nodes of several."""
    leaf = switched({f"s{number}": 16 for number in range(8)})
    nodes = list(leaf)
    order = schedule.shuffled(len(nodes), 7)
    partners: dict[str, list[str]] = {node: [] for node in nodes}
    for turn in range(schedule.enough(len(nodes))):
        for a, b in schedule.pairs(order, turn):
            partners[nodes[a]].append(leaf[nodes[b]])
            partners[nodes[b]].append(leaf[nodes[a]])
    cross = sum(other != leaf[node] for node, own in partners.items() for other in own)
    assert cross > 0.8 * sum(map(len, partners.values()))
    assert min(len(set(own)) for own in partners.values()) >= 4
