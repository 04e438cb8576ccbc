"""Vetting at the size of its users: synthetic nodes against the real coordinator, without Slurm (`make scale`)."""

from __future__ import annotations

import gc
import secrets

import pytest
from piolet.vet.runner import records

from tests.scale import FULL, costs
from tests.scale.swarm import Swarm

LARGEST = costs.SIZES[-1]
GROWTH_MAX = 1.1


@pytest.mark.parametrize("name", ["calls", "bytes", "memory"])
def test_costs_grow_as_the_nodes_do(name: str) -> None:
    """With their number, and hardly faster: rounds grow with its logarithm. Calls stand for CPU, undisturbed."""
    small, large = (float(getattr(costs.measured(count).costs, name)) for count in (costs.SIZES[0], LARGEST))
    assert costs.exponent(small, large) <= GROWTH_MAX, (small, large)


def test_cpu_grows_as_the_nodes_do() -> None:
    """The least of several times, since other processes take the caches that both need."""
    seen: list[float] = []
    for _ in range(4):
        seen.append(costs.exponent(costs.least_cpu(costs.SIZES[0]), costs.least_cpu(LARGEST)))
        if seen[-1] <= GROWTH_MAX:
            return
    raise AssertionError(seen)


def test_nothing_that_is_kept_is_in_a_cycle() -> None:
    """So that the collector of cycles may be off: without it a vetting of many nodes leaves no more than one of few."""
    left = []
    for count in (64, 64, 1280):
        swarm = Swarm(count, {3})
        gc.collect()
        swarm.vet()
        left.append(gc.collect())
    assert left[2] <= left[1] + 50, left


def test_a_hundred_slow_nodes_of_ten_thousand_are_named() -> None:
    """Exactly those, in 2 s of CPU and 300 MB; in small 27 of 2,688, in 1 s."""
    found = costs.measured(LARGEST)
    assert len(found.slow) == len(range(3, LARGEST, 100)) == (100 if FULL else 27)
    assert sorted(found.bad) == list(found.slow)
    assert found.costs.judging_s < (2.0 if FULL else 1.0)
    assert found.costs.memory < 300e6
    assert found.lines < 60


@pytest.mark.parametrize("count", costs.SIZES)
def test_no_line_is_near_its_limit(count: int) -> None:
    assert costs.measured(count).costs.longest < records.LINE_MAX * 0.6


@pytest.mark.parametrize("limit", [1939, 700])
def test_good_nodes_under_a_limit_that_is_scaled_down(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 nodes under 1,939 bytes are 2,163 under 65,536; all of them were 'no answer' once."""
    monkeypatch.setattr(records, "LINE_MAX", limit)
    swarm = Swarm(64)
    decision, text = swarm.vet()
    assert swarm.costs.longest <= limit
    assert decision.good == swarm.names, text
    assert not decision.notes


@pytest.mark.parametrize("count", [2, 3, 5, 7, 8, 9, 33])
def test_few_nodes(count: int) -> None:
    """Odd numbers pause, small ones meet everybody, and good ones are good."""
    swarm = Swarm(count)
    decision, _ = swarm.vet()
    assert decision.good == swarm.names


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("count", "slow"), [(9, 3), (10, 3), (13, 4), (22, 7), (40, 13)])
def test_a_third_of_few_nodes(count: int, slow: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Suspects meet good nodes again, which then have mostly bad meetings; all passed, and nothing was said."""
    monkeypatch.setattr(secrets, "randbits", lambda _: seed)
    swarm = Swarm(count, set(range(slow)))
    decision, _ = swarm.vet()
    assert sorted(decision.bad) == sorted(swarm.slow)


def test_half_of_the_nodes_are_no_silent_pass() -> None:
    """Slow ones set the limit, or the way is slow: nobody can tell, and the screen says so."""
    swarm = Swarm(8, set(range(4)))
    decision, text = swarm.vet()
    assert decision.bad == []
    assert (
        "note: network_pair: by their best meetings there are two groups, 4 nodes near 2 GB/s and 4 nodes near" in text
    )


def test_all_rounds_of_many_nodes() -> None:
    """384 nodes with a slow one took 12 s of CPU for their 383 rounds when every one was compared with every other."""
    swarm = Swarm(384, {17}, rounds=1000)
    decision, _ = swarm.vet()
    assert decision.bad == sorted(swarm.slow)
    assert swarm.costs.rounds >= 383
    assert swarm.costs.judging_s < 3.0
