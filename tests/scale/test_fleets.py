"""Rules on made fleets, in short; whole figures: `python -m tests.scale.fleets`, `python -m tests.scale.rules`."""

from __future__ import annotations

import pytest

from tests.scale import rules
from tests.scale.fleets import catalogue, ideal, judge
from tests.simulators import fleet


def test_lemons_are_named_and_nobody_for_a_users_program() -> None:
    """Nodes that fail four times as often as in the figures, so that a third of a year shows what a year does."""
    plan = fleet.Fleet(nodes=1000, days=120, rate=8e-5, heartbeat_h=100, largest=128)
    events, truth = fleet.simulate(5, plan)
    run = judge(events, truth, catalogue(), plan.days)
    named, right = run.judged(plan.days)
    assert run.users == 0
    assert run.innocent == []
    assert right >= 0.7 * named > 4
    found, shown = run.in_time()
    assert found >= 0.8 * shown > 0


@pytest.mark.parametrize(("days", "most"), [(7, 0.0001), (365, 0.47)])
def test_nobody_finds_a_lemon_much_sooner(days: float, most: float) -> None:
    least, recall, precision = ideal(fleet.Fleet(), days)
    assert recall < most
    assert precision >= 0.95
    assert least in (3, 4)


def test_a_first_failure_within_a_week_is_rare() -> None:
    """So no detector of failures finds more than 7 of 100 lemons in 7 days, whatever else it gets wrong."""
    plan = fleet.Fleet(days=7, heartbeat_h=100)
    shown = [truth.lemons & {node for _, node, _ in truth.failures}
             for truth in (fleet.simulate(seed, plan)[1] for seed in range(30, 36))]  # fmt: skip
    assert sum(map(len, shown)) / (6 * 24) < 0.2


def test_the_engine_judges_ten_thousand_records_a_second() -> None:
    rate, megabytes, found = rules.measured(30_000)
    assert rate > 10_000
    assert megabytes < 150
    assert found
