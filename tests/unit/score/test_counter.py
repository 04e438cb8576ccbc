"""The energy counter, its restarts and its witness."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from piolet.score.counter import EnergyCounter


def counted(joules: list[float], power: float = 10.0, cuts: tuple[int, ...] = ()) -> EnergyCounter:
    counter = EnergyCounter()
    values: Any = np.array(joules, float)
    end = (np.arange(len(values)) + 1) * 10**9
    edges = [0, *cuts, len(values)]
    for first, last in itertools.pairwise(edges):
        size = last - first
        counter.add(end[first:last], np.ones(size), values[first:last], np.full(size, power))
    return counter


def test_pieces_are_added() -> None:
    got = counted([1e6, 1e6 + 10, 1e6 + 20, 3, 13, 23])
    assert (got.joules, got.restarts, got.seconds) == (40, 1, 5) and got.by_power == 50


def test_missing_readings_lie_between() -> None:
    nan = math.nan
    got = counted([nan, 100, nan, nan, 130, nan])
    assert (got.joules, got.by_power, got.seconds) == (30, 30, 3)
    assert math.isnan(counted([nan, nan]).joules) and counted([7]).joules == 0


@given(st.lists(st.floats(0, 1e6) | st.just(math.nan), min_size=1, max_size=12), st.data())
def test_chunks_change_nothing(joules: list[float], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(joules)), max_size=3)))
    one, other = counted(joules), counted(joules, cuts=tuple(cuts))
    for name in ("joules", "by_power", "seconds", "restarts"):
        assert getattr(one, name) == pytest.approx(getattr(other, name), nan_ok=True), name
    assert math.isnan(one.joules) or one.joules >= 0
