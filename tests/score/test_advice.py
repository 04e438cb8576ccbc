"""Each rule on a load that it is for, and all of them silent on one that is fine."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from piolet.score import advice
from piolet.score.summary import Summary

Report = Callable[..., Summary]


def rules(summary: Summary) -> list[str]:
    """Return the names of the rules that spoke, whatever their weight."""
    return [found.rule for found in advice.advise(summary.view, 99)]


@pytest.mark.parametrize(
    ("script", "rule"),
    [
        ("gpu\nload matmul 100\ngpu\nload idle 100\n", "unused"),
        ("gpu\nload matmul 2\nload idle 1\n", "waiting"),
        ("gpu\nload small 100\n", "narrow"),
        ("gpu\nload fp32 100\n", "tensor cores"),
        ("gpu\nload copy 100\n", "memory bound"),
        ("gpu\nload matmul 1\nload allreduce 1\n", "communication bound"),
        ("gpu\nload matmul 1\nload offload 1\n", "communication bound"),
        ("gpu\nload hot 100\n", "heat"),
        ("gpu\nload capped 100\n", "power limit"),
        ("gpu\nload full 100\n", "memory full"),
        ("gpu\nload small 100\n", "memory unused"),
        ("gpu\nload matmul 100\nxid 48 3\n", "errors"),
        ("gpu\nload matmul 100\n" * 7 + "gpu\nload hot 100\n", "slow GPU"),
    ],
)
def test_a_rule_speaks_when_it_should(report: Report, script: str, rule: str) -> None:
    """And gives a figure as evidence."""
    got = report(script, 20)
    found = next((a for a in advice.advise(got.view, 99) if a.rule == rule), None)
    assert found is not None, rules(got)
    assert any(c.isdigit() for c in found.seen) and found.do and 0 < found.weight <= 1


@pytest.mark.parametrize(("seconds", "collector"), [(3, "gpm"), (20, "nvml")])
def test_what_has_happened_is_told_however_little_is_known(report: Report, seconds: int, collector: str) -> None:
    """A job that dies at once, and a node without profiling counters."""
    script = "gpu\nload hot 100\nxid 48 1\n"
    assert rules(report(script, seconds, 0.1, collector)) == ["errors", "heat"]


@pytest.mark.parametrize(
    "script",
    [
        "gpu\nload matmul 100\n" * 8,
        "gpu\nload idle 5\nload matmul 1000\n",
        "gpu\nload fp64 100\n",
    ],
)
def test_nothing_is_said_where_nothing_is_wrong(report: Report, script: str) -> None:
    """A start-up is no waiting; double precision is no mistake."""
    assert rules(report(script, 60, 0.2)) == []


def test_idle_at_the_ends_is_not_waiting(report: Report) -> None:
    """Only what is between the first and the last kernel counts."""
    assert "waiting" not in rules(report("gpu\nload idle 20\nload matmul 40\nload idle 20\n", 80, 0.2))


def test_at_most_three_and_the_weightiest_first(report: Report) -> None:
    """A screen is no list of everything."""
    got = report("gpu\nload small 2\nload idle 1\nxid 79 1\n", 20)
    assert len(got.advice) <= 3 and got.advice[0].rule == "errors"
    weights = [found.weight for found in got.advice]
    assert weights == sorted(weights, reverse=True)


def test_too_little_data_gives_no_advice(report: Report) -> None:
    """Neither a short step nor one that is mostly not covered."""
    assert report("gpu\nload small 100\n", 3).advice == ()
    got = report("gpu\nload small 100\n", 20)
    got.view.totals = got.view.totals.__class__.zero(1)
    assert advice.advise(got.view) == []


def test_missing_counters_silence_a_rule(report: Report) -> None:
    """No FP32 counter: nothing about tensor cores."""
    got = report("gpu\nload fp32 100\nblank 12 3\n", 20)
    assert np.isnan(got.view.means["fp32"]).all() and "tensor cores" not in rules(got)
