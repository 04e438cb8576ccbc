"""How often nodes failed, as the service knows it without reading its store again."""

from __future__ import annotations

import json

import pytest
from piolet.central.failures import WINDOW_S, Failures, Known
from piolet.central.recent import Recent
from piolet.central.rules.replay import replay
from piolet.events.envelope import FATAL, Event

from tests.simulators import fleet
from tests.unit.central.making import DAY, HOUR, MINUTE, START, event


def taken(*events: Event) -> Failures:
    made = Failures()
    for one in events:
        made.take(one, one.time)
    return made


def test_hours_are_between_the_first_and_the_last_word_of_each_node() -> None:
    beats = [event("node.heartbeat", at, node) for node, at in (("n1", 0), ("n1", 10 * DAY), ("n2", 0), ("n2", DAY))]
    assert taken(*beats).known(START + 20 * DAY) == Known(0, 11 * 24)
    assert taken(*beats).known(START + WINDOW_S + 5 * DAY) == Known(0, 5 * 24), "the rest is too old"


def test_what_one_failure_says_in_several_ways_is_one_and_what_users_do_is_none() -> None:
    said = [
        event("gpu.xid", 0, severity=FATAL, body={"xid": 79}), event("gpu.lost", MINUTE, severity=FATAL),
        event("slurm.node_state", 10 * MINUTE, body={"state": "down", "reason": "Not responding"}),
        event("gpu.lost", 10 * MINUTE, "n2"), event("gpu.lost", 2 * HOUR),
        event("gpu.xid", DAY, severity=FATAL, body={"xid": 31}),
        event("step.outcome", DAY, severity=FATAL, body={"why": "signal", "signal": 11}),
        event("slurm.node_state", DAY, body={"state": "powered_down"}),
    ]  # fmt: skip
    assert taken(*said).known(START + 2 * DAY).failures == 3
    assert taken(*said).known(START + HOUR).failures == 2 and taken(*said).known(START + 2 * WINDOW_S).failures == 0


def test_a_clock_that_is_off_moves_no_failure() -> None:
    made = Failures()
    made.take(event("gpu.lost", HOUR, offset=3600.0), START + 30)
    made.take(event("gpu.lost", 5 * HOUR, "n2"), START + 30)  # nothing happens later than it is told
    assert made.known(START + MINUTE).failures == 2 and made.known(START - 1).failures == 0


def test_it_counts_what_a_replay_counts() -> None:
    events, _ = fleet.simulate(11, fleet.Fleet(nodes=100, days=40, rate=2e-3, largest=32))
    made = Failures()
    for received, one in events:
        made.take(one, received)
    done = replay((), [(one, received) for received, one in events])
    assert made.known(done.end + 1).failures == done.failures > 100


def test_it_is_kept_over_a_restart() -> None:
    first, second = Recent(), Recent()
    for number in range(50):
        first.take(event("gpu.lost", number * DAY, f"n{number % 7}"), START + number * DAY)
    first.take(event("step.outcome", 0, job=1, step="0", uid=7, body={"why": "exit", "status": 1}), START)
    second.resume(first.lines())
    assert list(second.lines()) == list(first.lines())
    now = START + 50 * DAY
    assert second.nodes.known(now) == first.nodes.known(now) and first.nodes.known(now).failures == 50
    assert second.step((7, 1, "0")) is not None
    for wrong in ({"node": "n1"}, {"node": "n1", "times": [1]}, {"failed": 3}):
        with pytest.raises((KeyError, TypeError, ValueError)):
            Recent().resume([json.dumps(wrong).encode()])
