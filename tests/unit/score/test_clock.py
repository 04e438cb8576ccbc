"""Clocks that are read once a second stand for the samples after them, and for no longer."""

from __future__ import annotations

import numpy as np
import pytest
from piolet.score.clock import HELD_S, Held, cause, shares

NAN = np.nan


def test_the_last_reading_counts_for_each_gpu() -> None:
    held = Held(2)
    ends = (np.array([0.0, 0.1, 1.0, 1.1, 0.0, 0.1]) * 1e9).astype(np.int64)
    gpu = np.array([0, 0, 0, 0, 1, 1])
    got = held.fill(np.array([1980, NAN, 1200, NAN, NAN, 900]), ends, gpu)
    assert got == pytest.approx([1980, 1980, 1200, 1200, NAN, 900], nan_ok=True)


def test_it_goes_on_in_the_next_chunk_and_ends() -> None:
    held = Held(1)
    held.fill(np.array([1500.0]), np.array([10**9]), np.array([0]))
    later = (np.array([1.5, 1 + HELD_S, 1.1 + HELD_S]) * 1e9).astype(np.int64)
    got = held.fill(np.full(3, NAN), later, np.zeros(3, int))
    assert got == pytest.approx([1500, 1500, NAN], nan_ok=True)


def test_causes_by_the_drivers_mask() -> None:
    assert list(cause(np.array([0.0, NAN, 1.0, 0x40, 0x4, 0x8, 0x2, 0x4 | 0x20]))) == [4, 4, 4, 0, 1, 2, 3, 0]


def test_shares_need_the_highest() -> None:
    values = {"clock_sm": np.array([990.0, 1980.0]), "clock_memory": np.array([2619.0, 2619.0])}
    got = shares(values, np.array([0, 1]), np.array([1980.0, NAN]), np.array([2619.0, 2619.0]))
    assert got["clock_share"] == pytest.approx([0.5, NAN], nan_ok=True)
    assert got["memory_clock_share"] == pytest.approx([1, 1])
