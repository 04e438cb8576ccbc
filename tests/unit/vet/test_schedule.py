"""Rounds that everybody works out alike."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from piolet.vet.runner import schedule


def test_the_order_is_that_of_every_python() -> None:
    """Were it another one on one side, a node would measure with the wrong partner."""
    assert schedule.shuffled(8, 1) == [7, 4, 6, 5, 2, 3, 0, 1]
    assert schedule.shuffled(8, 2) != schedule.shuffled(8, 1)
    assert sorted(schedule.shuffled(1000, 7)) == list(range(1000))


@pytest.mark.parametrize(
    ("count", "turns", "enough"),
    [(0, 0, 0), (1, 0, 0), (2, 1, 1), (3, 3, 3), (4, 3, 3), (8, 7, 7), (9, 9, 8), (64, 63, 10), (65, 65, 11),
     (2688, 2687, 16), (10_000, 9999, 18)],
)  # fmt: skip
def test_how_many_rounds(count: int, turns: int, enough: int) -> None:
    assert schedule.turns(count) == turns
    assert schedule.enough(count) == enough


@given(st.integers(min_value=0, max_value=41), st.integers(min_value=0, max_value=2**32))
def test_every_two_meet_once(count: int, seed: int) -> None:
    order = schedule.shuffled(count, seed)
    met = []
    for turn in range(schedule.turns(count)):
        pairs = list(schedule.pairs(order, turn))
        members = [node for pair in pairs for node in pair]
        assert len(members) == len(set(members)) == count - count % 2
        met += [tuple(sorted(pair)) for pair in pairs]
    assert sorted(met) == list(combinations(range(count), 2))


@given(st.integers(min_value=1, max_value=41), st.integers(min_value=0, max_value=99))
def test_a_node_knows_its_pair_alone(count: int, turn: int) -> None:
    """By its place only, without the other pairs."""
    order = schedule.shuffled(count, 5)
    turn %= max(1, schedule.turns(count))
    found = {pair for place in range(count) if (pair := schedule.pair_of(order, place, turn)) is not None}
    assert found == set(schedule.pairs(order, turn))


def test_all_measure_about_as_often() -> None:
    order = schedule.shuffled(64, 3)
    first = [one for turn in range(10) for one, _ in schedule.pairs(order, turn)]
    assert all(3 <= first.count(node) <= 7 for node in range(64))
