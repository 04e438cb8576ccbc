"""Failures of steps: whose nodes are counted, what is forgotten, and what users are told of it."""

from __future__ import annotations

from typing import Any

import pytest
from piolet.central.recent import WEEK_S, Recent, how
from piolet.central.rules.users import Failed
from piolet.events.envelope import Event

NOW = 1.7e9


def outcome(
    node: str, job: int, uid: int, at: float = NOW, step: str = "0", run: int = 0, **said: Any
) -> tuple[Event, float]:
    body = said or {"why": "exit", "status": 1}
    event = Event(
        "alps", node, "0" * 16, 1, at, "step.outcome", "user", job=job, step=step, uid=uid, run=run, body=body
    )
    return event, at


def recent(*events: tuple[Event, float], **more: Any) -> Recent:
    made = Recent(**more)
    for event, at in events:
        made.take(event, at)
    return made


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"why": "exit", "status": 0}, None),
        ({"why": "exit", "status": 3}, "status 3"),
        ({"why": "exit", "status": 137}, ""),
        ({"why": "signal", "signal": 11}, "signal 11"),
        ({"why": "signal", "signal": 9}, ""),
        ({"why": "out_of_memory", "signal": 9}, "out_of_memory"),
        ({"why": "time_limit", "signal": 15}, ""),
        ({"why": "other"}, None),
        ({"why": "exit", "status": "1"}, None),
        ({}, None),
    ],
)
def test_how_tasks_ended(body: dict[str, Any], word: str | None) -> None:
    assert how(body) == word


def test_a_node_is_counted_where_it_failed_and_not_where_the_rest_was_ended() -> None:
    found = recent(
        outcome("n1", 7, 1000, why="signal", signal=11),
        outcome("n2", 7, 1000, why="signal", signal=9),
        outcome("n2", 7, 1000, why="exit", status=1),  # a task that said so when it was ended
    )
    failed = found.step(7, "0")
    assert failed is not None and failed.nodes == {"n1": "signal 11"}
    assert found.failed("n1", NOW) == (Failed(1, 1), frozenset({1000}))
    assert found.failed("n2", NOW) == (Failed(0, 0), frozenset())


def test_a_step_that_was_cancelled_is_no_failure() -> None:
    found = recent(*(outcome(f"n{n}", 7, 1000, why="signal", signal=15) for n in range(4)))
    assert found.step(7, "0") is None


def test_users_and_steps_of_a_node_are_counted_without_the_one_that_asks() -> None:
    steps = [(1, 1000, "0"), (2, 1001, "0"), (3, 1002, "0"), (3, 1002, "1")]
    found = recent(*(outcome("n3", job, uid, step=step) for job, uid, step in steps))
    assert found.failed("n3", NOW, (3, "1"))[0] == Failed(3, 3)
    assert found.failed("n3", NOW)[0] == Failed(4, 3)


def test_a_step_that_failed_on_many_nodes_says_nothing_of_one() -> None:
    found = recent(*(outcome(f"n{n}", 7, 1000) for n in range(3)))
    assert found.failed("n0", NOW)[0] == Failed()


def test_other_nodes_on_which_the_same_users_steps_failed_alike() -> None:
    found = recent(
        *(outcome(f"n{n}", n, 1000) for n in range(1, 7)),
        outcome("n7", 7, 1000, why="exit", status=2),
        outcome("n8", 8, 1001),
        outcome("n9", 9, 1000),
    )
    failed = found.step(9, "0")
    assert failed is not None and found.others(failed, 9, "0") == 6


def test_the_last_run_of_a_requeued_job_is_the_one_that_is_asked_for() -> None:
    found = recent(outcome("n1", 7, 1000), outcome("n2", 7, 1000, run=1))
    failed = found.step(7, "0")
    assert failed is not None and list(failed.nodes) == ["n2"]


def test_what_is_older_than_a_week_is_forgotten_and_so_is_what_is_too_much() -> None:
    found = recent(outcome("n1", 1, 1000), outcome("n2", 2, 1000, NOW + WEEK_S + 1))
    assert found.step(1, "0") is None and found.failed("n1", NOW)[0] == Failed()
    found = recent(*(outcome("n1", n, 1000, NOW + n) for n in range(1, 101)), most=10)
    assert found.step(90, "0") is None and found.step(91, "0") is not None
    assert found.failed("n1", NOW)[0] == Failed(10, 1)
    assert (found._count, len(found._steps), len(found._of_node["n1"])) == (10, 10, 10)


def test_other_events_change_nothing() -> None:
    made = Recent()
    made.take(Event("alps", "n1", "0" * 16, 1, NOW, "node.heartbeat", "root"), NOW)
    assert not made._steps


def test_one_user_pushes_out_nobody_elses_failures() -> None:
    theirs = [outcome("n1", 5000 + n, 1000, NOW + n) for n in range(100)]
    found = recent(outcome("n2", 1, 1001), *theirs, each=10)
    assert found.step(1, "0") is not None
    assert found.step(5089, "0") is None and found.step(5090, "0") is not None
    assert (found._count, len(found._steps), found._counts) == (11, 11, {1001: 1, 1000: 10})


def test_a_step_of_more_nodes_than_a_user_may_have_is_cut_and_not_kept_for_ever() -> None:
    found = recent(*(outcome(f"n{n}", 7, 1000) for n in range(25)), each=10)
    assert found._count <= 10 and found._count == sum(len(one.nodes) for one in found._steps.values())


def test_looking_up_a_step_does_not_depend_on_how_many_failed() -> None:
    """Each srun that fails asks for its own."""
    found = recent(*(outcome("n1", n, n, NOW) for n in range(1, 2001)))
    assert found._runs.keys() == {(n, "0") for n in range(1, 2001)}
    assert found.step(1500, "0") is not None
