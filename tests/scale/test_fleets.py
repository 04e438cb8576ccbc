"""Rules on made fleets, in short; whole figures: `python -m tests.scale.fleets`, `python -m tests.scale.rules`."""

from __future__ import annotations

import random

import pytest

from tests.scale import rules
from tests.scale.fleets import catalogue, ideal, interval, judge, soonest
from tests.simulators import fleet


def test_lemons_are_named_and_nobody_for_a_users_program() -> None:
    """Nodes that fail more often than in the figures, so that a year shows what three do."""
    plan = fleet.Fleet(
        nodes=400, days=365, rate=4e-5, lemons=0.03, heartbeat_h=1000, largest=128, drains_per_day=0.3, busy=0.2
    )
    events, truth = fleet.simulate(5, plan)
    run = judge(events, truth, catalogue("300d"), plan.days)
    named, right = run.judged(plan.days)
    assert run.users == 0
    assert run.innocent == []
    assert right >= 0.8 * named > 4
    found, shown = run.in_time()
    assert found >= 0.7 * shown > 0


@pytest.mark.parametrize(("days", "most"), [(7, 0.0001), (365, 0.47)])
def test_nobody_finds_a_lemon_much_sooner(days: float, most: float) -> None:
    least, recall, precision = ideal(fleet.Fleet(), days)
    assert recall < most
    assert precision >= 0.95
    assert least in (3, 4)


def test_nor_within_a_week_of_its_first_failure() -> None:
    """Counted here once more with made nodes, good ones and lemons: nobody who names by counts does better."""
    soon, ever = soonest(fleet.Fleet())
    assert soon < 0.004
    assert 0.06 < ever < 0.07
    draw, more = random.Random(1), {True: [0, 0, 0], False: [0, 0, 0]}
    for lemon, nodes, rate in ((True, 100_000, 4e-4), (False, 411_667, 2e-5)):  # first failures, as many as there are
        for _ in range(nodes):
            at, count = draw.expovariate(rate), 0
            while at < 7 * 24 and count < 2:
                at, count = at + draw.expovariate(rate), count + 1
            more[lemon][count] += 1
    (_, once, twice), (_, wrongly, wrong) = more[True], more[False]
    assert once / (once + wrongly) < 0.9  # a second failure is not enough
    assert twice / (twice + wrong) > 0.95  # a third is, and comes too seldom:
    assert twice / 100_000 <= soon * 1.1


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


def test_an_interval_is_wilsons() -> None:
    """As Newcombe (1998) gives it for 81 of 263, and for none of 20."""
    assert interval(81, 263) == "0.308 [0.255, 0.366]"
    assert interval(0, 20) == "0.000 [0.000, 0.161]"
    assert interval(0, 0) == "-"
