"""Phases are where a series changes, and nowhere else."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from piolet.score.phases import PHASES_MAX, phases


def test_a_steady_noisy_series_is_one_phase() -> None:
    noise = np.random.default_rng(1).normal(0.5, 0.05, (400, 3))
    assert [(p.start, p.end) for p in phases(noise)] == [(0, 400)]


def test_three_levels_are_three_phases() -> None:
    draw = np.random.default_rng(2)
    level = np.concatenate([np.full(60, 0.05), np.full(100, 0.8), np.full(40, 0.3)])
    found = phases(np.stack([level + draw.normal(0, 0.02, 200), np.full(200, 0.1)], axis=1))
    assert [(p.start, p.end) for p in found] == [(0, 60), (60, 160), (160, 200)]
    assert abs(found[1].means[0] - 0.8) < 0.01


def test_missing_bins_belong_to_no_phase() -> None:
    series = np.full((20, 1), 0.5)
    series[:5] = np.nan
    assert [(p.start, p.end) for p in phases(series)] == [(5, 20)]
    assert phases(np.full((4, 2), np.nan)) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=80))
def test_phases_cover_the_series_once(values: list[float]) -> None:
    found = phases(np.array(values)[:, None])
    assert found[0].start == 0 and found[-1].end == len(values) and len(found) <= PHASES_MAX
    assert all(a.end == b.start for a, b in itertools.pairwise(found))
