"""Failures of steps: whose nodes are counted, what is forgotten, and what users are told of it."""

from __future__ import annotations

from typing import Any

import pytest
from piolet.central.recent import WEEK_S, FailedStep, Recent, how
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


def step(found: Recent, job: int, uid: int = 1000, name: str = "0") -> FailedStep | None:
    return found.step((uid, job, name))


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
    failed = step(found, 7)
    assert failed is not None and failed.nodes == {"n1": "signal 11"}
    assert found.failed("n1", NOW) == (Failed(1, 1), frozenset({1000}))
    assert found.failed("n2", NOW) == (Failed(0, 0), frozenset())


def test_a_step_that_was_cancelled_is_no_failure() -> None:
    found = recent(*(outcome(f"n{n}", 7, 1000, why="signal", signal=15) for n in range(4)))
    assert step(found, 7) is None


def test_users_and_steps_of_a_node_are_counted_without_the_one_that_asks() -> None:
    steps = [(1, 1000, "0"), (2, 1001, "0"), (3, 1002, "0"), (3, 1002, "1")]
    found = recent(*(outcome("n3", job, uid, step=step) for job, uid, step in steps))
    assert found.failed("n3", NOW, (1002, 3, "1"))[0] == Failed(3, 3)
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
    failed = step(found, 9)
    assert failed is not None and found.others(failed) == 6


def test_the_last_run_of_a_requeued_job_is_the_one_that_is_asked_for() -> None:
    found = recent(outcome("n1", 7, 1000), outcome("n2", 7, 1000, run=1))
    failed = step(found, 7)
    assert failed is not None and list(failed.nodes) == ["n2"]


def test_what_is_older_than_a_week_is_forgotten_and_so_is_what_is_too_much() -> None:
    found = recent(outcome("n1", 1, 1000), outcome("n2", 2, 1000, NOW + WEEK_S + 1))
    assert step(found, 1) is None and found.failed("n1", NOW)[0] == Failed()
    found = recent(*(outcome("n1", n, 1000, NOW + n) for n in range(1, 101)), most=10)
    assert step(found, 90) is None and step(found, 91) is not None
    assert found.failed("n1", NOW)[0] == Failed(10, 1)
    assert (found._count, len(found._steps), len(found._of_node["n1"])) == (10, 10, 10)


def test_other_events_change_nothing() -> None:
    made = Recent()
    made.take(Event("alps", "n1", "0" * 16, 1, NOW, "node.heartbeat", "root"), NOW)
    assert not made._steps


def test_one_user_pushes_out_nobody_elses_failures() -> None:
    theirs = [outcome("n1", 5000 + n, 1000, NOW + n) for n in range(100)]
    found = recent(outcome("n2", 1, 1001), *theirs, each=10)
    assert step(found, 1, 1001) is not None
    assert step(found, 5089) is None and step(found, 5090) is not None
    assert (found._count, len(found._steps), found._counts) == (11, 11, {1001: 1, 1000: 10})


def test_a_step_of_more_nodes_than_a_user_may_have_is_cut_and_not_kept_for_ever() -> None:
    found = recent(*(outcome(f"n{n}", 7, 1000) for n in range(25)), each=10)
    assert found._count <= 10 and found._count == sum(len(one.nodes) for one in found._steps.values())


def test_looking_up_a_step_does_not_depend_on_how_many_failed() -> None:
    """Each srun that fails asks for its own."""
    found = recent(*(outcome("n1", n, n, NOW) for n in range(1, 2001)))
    assert found._runs.keys() == {(n, n, "0") for n in range(1, 2001)}
    assert step(found, 1500, 1500) is not None


def test_components_of_a_heterogeneous_job_are_one_step() -> None:
    """Whichever of them failed: srun asks by the first one's job."""
    found = recent(
        outcome("n1", 7, 1000, why="signal", signal=9),
        outcome("n2", 8, 1000, het_job=7, why="exit", status=3),
        outcome("n3", 9, 1000, het_job=7, why="signal", signal=9),
    )
    failed = step(found, 7)
    assert failed is not None and failed.nodes == {"n2": "status 3"}
    assert step(found, 8) is None and found.failed("n2", NOW)[0] == Failed(1, 1)
    assert found.failed("n2", NOW, failed.of)[0] == Failed(), "its own failure is none of those before it"
    found = recent(*(outcome(f"n{n}", 7 + n, 1000, het_job=7, why="exit", status=1) for n in range(3)))
    assert found.failed("n0", NOW)[0] == found.failed("n2", NOW)[0] == Failed(), "one step, on three nodes"


def test_of_components_on_one_node_the_one_that_failed_by_itself_is_told() -> None:
    """Whichever is heard of first; of one component how the first of its tasks ended."""
    ended: dict[str, Any] = {"why": "signal", "signal": 9, "order": 0}
    found = recent(
        outcome("n1", 7, 1000, **ended),
        outcome("n1", 8, 1000, het_job=7, why="exit", status=3, order=0),
        outcome("n1", 8, 1000, het_job=7, why="exit", status=4, order=1),
    )
    failed = step(found, 7)
    assert failed is not None and failed.nodes == {"n1": "status 3"}
    assert (found._count, found.failed("n1", NOW)[0]) == (1, Failed(1, 1))
    found = recent(outcome("n1", 7, 1000, **ended), outcome("n1", 7, 1000, why="exit", status=3, order=1))
    assert step(found, 7) is None


def test_what_srun_says_of_a_heterogeneous_job_touches_nobody_elses_and_no_other_job() -> None:
    theirs = [outcome(f"n{n}", 7 + n, 1001, het_job=7, why="exit", status=1) for n in range(1, 4)]
    found = recent(outcome("n9", 7, 1000), *theirs)
    mine = step(found, 7)
    assert mine is not None and list(mine.nodes) == ["n9"] and found.failed("n9", NOW)[0] == Failed(1, 1)
    for wrong in (200, 72, 73 - 128, -1, "7", None, True):  # later, itself, too far, none, no number
        found = recent(outcome("n1", 72, 1000, het_job=wrong, why="exit", status=1))
        assert step(found, 72) is not None, wrong
