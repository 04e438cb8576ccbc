"""Clocks that are read once a second stand for the samples after them, and for no longer."""

from __future__ import annotations

import numpy as np
import pytest
from piolet.score.clock import HELD_S, Held, cause, read, shares

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


def test_what_is_read_while_nothing_runs_is_not_read() -> None:
    """GPU idle is 0x1: the clock before it stands, and so does its reason."""
    chunk = {
        "clock_sm": np.array([1200.0, NAN, 345, 345, 1980]),
        "clock_memory": np.array([2619.0, NAN, 405, 405, 2619]),
        "clock_events": np.array([0x4, NAN, 0x1, 0x1 | 0x2, 0]),
    }
    got = read(chunk)
    assert got["clock_sm"] == pytest.approx([1200, NAN, NAN, NAN, 1980], nan_ok=True)
    assert got["clock_memory"] == pytest.approx([2619, NAN, NAN, NAN, 2619], nan_ok=True)
    assert got["clock_events"] == pytest.approx([0x4, NAN, NAN, NAN, 0], nan_ok=True)
    assert chunk["clock_sm"][2] == 345


def test_causes_by_the_drivers_mask() -> None:
    assert list(cause(np.array([0.0, NAN, 1.0, 0x40, 0x4, 0x8, 0x2, 0x4 | 0x20]))) == [4, 4, 4, 0, 1, 2, 3, 0]


def test_shares_need_the_highest() -> None:
    values = {"clock_sm": np.array([990.0, 1980.0]), "clock_memory": np.array([2619.0, 2619.0])}
    got = shares(values, np.array([0, 1]), np.array([1980.0, NAN]), np.array([2619.0, 2619.0]))
    assert got["clock_share"] == pytest.approx([0.5, NAN], nan_ok=True)
    assert got["memory_clock_share"] == pytest.approx([1, 1])
