"""The made fleets are what they say they are: rates, shares, and the same bytes for the same seed."""

from __future__ import annotations

from collections import Counter
from types import ModuleType

import pytest
from piolet.events.envelope import decode, encode
from piolet.events.kinds import KINDS

from tests.simulators import fleet, fleet2


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


@pytest.mark.parametrize("made", [fleet, fleet2], ids=["fleet", "fleet2"])
def test_a_seed_is_a_fleet(made: ModuleType) -> None:
    small = fleet.Fleet(nodes=100, days=3, largest=32)
    assert made.simulate(5, small) == made.simulate(5, small)
    assert made.simulate(5, small) != made.simulate(6, small)
