"""Whose scancel a signal was: what nodes saw and what accounting knows, put together."""

from __future__ import annotations

from typing import Any

import pytest
from piolet.central import accounted
from piolet.central.ends import NEAR_S, Ends
from piolet.events.envelope import Event
from piolet.slurm.past import EndedJob

END = 1.7e9


def ended(job: int, by: int | None, state: str = "CANCELLED", end: float = END) -> Event:
    row = EndedJob(job, "", 1000, state, 0, 15, ("node1", "node2"), end - 90, end - 80, end, by)
    (event,) = accounted.events_of_jobs([row], "alps")
    return event


def outcome(job: int | None, at: float = END, **said: Any) -> Event:
    body = said or {"why": "signal", "signal": 15}
    return Event("alps", "node2", "0" * 16, 1, at, "step.outcome", "user", job=job, step="0", uid=1000, body=body)


def test_a_signal_of_a_job_that_was_cancelled() -> None:
    ends = Ends()
    for event in (ended(7, 0), ended(8, 1000), ended(9, None, "FAILED"), ended(9, None)):
        ends.take(event, END)
    assert ends.cancelled(outcome(7)) == 0 and ends.cancelled(outcome(8, END - 40)) == 1000
    assert ends.cancelled(outcome(9)) is None and ends.cancelled(outcome(10)) is None
    assert ends.cancelled(outcome(None)) is None


@pytest.mark.parametrize(
    ("body", "by"),
    [
        ({"why": "signal", "signal": 9}, 0), ({"why": "exit", "status": 143}, 0), ({"why": "time_limit"}, None),
        ({"why": "signal", "signal": 11}, None), ({"why": "exit", "status": 1}, None),
        ({"why": "out_of_memory", "signal": 9}, None),
    ],
)  # fmt: skip
def test_what_scancel_does_not_do_is_not_put_down_to_it(body: dict[str, Any], by: int | None) -> None:
    ends = Ends()
    ends.take(ended(7, 0), END)
    assert ends.cancelled(outcome(7, **body)) == by


def test_a_run_of_the_same_job_that_was_not_cancelled() -> None:
    """It was requeued: the one that was cancelled ended long after."""
    ends = Ends()
    ends.take(ended(7, 0), END)
    ends.take(ended(7, 1000, end=END + 5000), END)
    assert ends.cancelled(outcome(7, END - NEAR_S - 1)) is None
    assert ends.cancelled(outcome(7, END + 4990)) == 1000


def test_what_was_known_before_is_asked_for_once_and_the_oldest_go() -> None:
    asked = []

    def before() -> Any:
        asked.append(1)
        yield from (ended(job, job) for job in range(1, 6))

    ends = Ends(before(), most=3)
    assert [ends.cancelled(outcome(job)) for job in range(1, 6)] == [None, None, 3, 4, 5]
    ends.take(ended(6, 6), END)
    assert ends.cancelled(outcome(3)) is None and ends.cancelled(outcome(6)) == 6 and asked == [1]
    assert len(ends._ends) == 3
