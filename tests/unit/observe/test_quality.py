"""Rows of quality: one for a stretch of time."""

from __future__ import annotations

from piolet.observe.quality import AGAIN_S, Gaps


def test_a_gap_is_told_when_it_is_over() -> None:
    gaps = Gaps()
    for tick in range(3):
        gaps.add("nfs", "/home", "it does not answer", tick * 10.0, tick * 10.0 + 10.0, 4)
        assert gaps.told() == []
    assert gaps.told() == [("nfs", "/home", 0.0, 30.0, "it does not answer", 12)]
    assert gaps.told() == []


def test_a_gap_that_goes_on_is_told_now_and_then_and_at_the_end() -> None:
    gaps = Gaps()
    gaps.add("gpu", "", "why", 0.0, AGAIN_S, 1)
    assert len(gaps.told()) == 1
    gaps.add("gpu", "", "why", AGAIN_S, AGAIN_S + 10, 1)
    assert gaps.told() == []
    assert len(gaps.told(all_of_them=True)) == 1


def test_reasons_do_not_grow_without_bound() -> None:
    gaps = Gaps()
    for number in range(1000):
        gaps.add("gpu", str(number), "why", 0.0, 1.0, 1)
    rows = gaps.told(all_of_them=True)
    assert len(rows) <= 65
    assert sum(row[-1] for row in rows) == 1000


def test_a_clock_that_is_put_back_leaves_no_gap_that_ends_before_it_begins() -> None:
    gaps = Gaps()
    gaps.add("gpu", "", "why", 5000.0, 5010.0, 1)
    assert gaps.told() == []
    gaps.add("gpu", "", "why", 1400.0, 1410.0, 1)
    assert gaps.told() == []
    assert gaps.told() == [("gpu", "", 1410.0, 1410.0, "why", 2)]
