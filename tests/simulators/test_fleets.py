"""The made fleets are what they say they are: rates, shares, and the same bytes for the same seed."""

from __future__ import annotations

from collections import Counter
from types import ModuleType

import pytest
from piolet.events.envelope import Event, decode, encode
from piolet.events.kinds import KINDS

from tests.simulators import fleet, fleet2, fleet3


@pytest.mark.parametrize("made", [fleet, fleet2], ids=["fleet", "fleet2"])
def test_a_fleet_is_what_it_says(made: ModuleType) -> None:
    plan = fleet.Fleet(days=28)
    events, truth = made.simulate(3, plan)
    assert len(truth.lemons) == 24
    hours, most = plan.days * 24, 0
    for group, rate in ((truth.lemons, 20 * 2e-5), (None, 2e-5)):
        failed = sum((group is None) == (node not in truth.lemons) for _, node, _ in truth.failures)
        expected = (24 if group else 1976) * hours * rate
        assert abs(failed - expected) < 4 * expected**0.5, (failed, expected)
        most += failed
    assert most == len(truth.failures)
    _is_told_as_it_is(events, truth)


def test_a_fleet_of_causes_is_what_it_says() -> None:
    plan = fleet.Fleet(nodes=1000, days=365, heartbeat_h=1000, largest=128)
    events, truth = fleet3.simulate(3, plan)
    for of_lemons, rate in ((True, 4e-4), (False, 2e-5)):
        nodes = 12 if of_lemons else 988
        failed = sum((node in truth.lemons) is of_lemons for _, node, _ in truth.failures)
        expected = nodes * plan.days * 24 * rate
        assert abs(failed - expected) < 6 * expected**0.5, (failed, expected)  # in trains: more than Poisson's
    trains = [len(times) for _, _, times, _ in truth.causes]
    assert sum(trains) == len(truth.failures)
    assert 0.15 < sum(one > 1 for one in trains) / len(trains) < 0.4
    assert max(trains) > 3
    assert {what for _, _, what in truth.shared} == {"switch", "cooling", "driver", "program"}
    _is_told_as_it_is(events, truth)


def _is_told_as_it_is(events: list[tuple[float, Event]], truth: fleet.Truth) -> None:
    assert truth.broken
    assert truth.struck
    times = [received for received, _ in events]
    assert times == sorted(times)
    copies = Counter(event.key for _, event in events)
    assert 1.01 < len(events) / len(copies) < 1.05
    for _, event in events[::50]:
        assert decode(encode(event)) == event
        assert event.source in KINDS[event.kind].sources
        assert event.body.keys() <= KINDS[event.kind].body.keys()


@pytest.mark.parametrize("made", [fleet, fleet2, fleet3], ids=["fleet", "fleet2", "fleet3"])
def test_a_seed_is_a_fleet(made: ModuleType) -> None:
    small = fleet.Fleet(nodes=100, days=3, largest=32)
    assert made.simulate(5, small) == made.simulate(5, small)
    assert made.simulate(5, small) != made.simulate(6, small)
