"""The poller of Slurm's accounting: nothing is missed, nothing is twice, and what fails is told once."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest
from piolet.base.errors import SlurmError
from piolet.central.poller import CURSOR, OVERLAP_S, PIECE_S, Poller
from piolet.events.envelope import Event
from piolet.slurm.asking import TooMuchError
from piolet.slurm.past import EndedJob, NodeState

from tests.support.waiting import wait_until

NOW = 1.7e9


class Kept:
    """What a service keeps, by key."""

    def __init__(self) -> None:
        self.events: dict[tuple[str, str, int], Event] = {}
        self.cursors: dict[str, float] = {}

    def take_own(self, events: Sequence[Event]) -> int:
        new = [event for event in events if event.key not in self.events]
        self.events.update({event.key: event for event in new})
        return len(new)

    def cursor(self, name: str) -> float | None:
        return self.cursors.get(name)

    def set_cursor(self, name: str, value: float) -> None:
        self.cursors[name] = value


class Accounting:
    """A slurmdbd with these jobs; `asked` are the times that it was asked for."""

    def __init__(self, *ends: float) -> None:
        self.jobs = [EndedJob(n, "", 1000, "FAILED", 1, 0, ("n1",), 1.0, 2.0, end) for n, end in enumerate(ends, 1)]
        self.asked: list[tuple[float, float]] = []

    def ask_jobs(self, since: float, until: float) -> list[EndedJob]:
        self.asked.append((since, until))
        return [job for job in self.jobs if since <= job.end <= until]

    def ask_states(self, since: float) -> list[NodeState]:
        return [NodeState("n1", NOW - 50.0, None, "drain", "disk", "root")]


def poller(kept: Kept, slurm: Accounting, now: float = NOW) -> Poller:
    return Poller(kept, "alps", 60.0, 3 * PIECE_S, slurm.ask_jobs, slurm.ask_states, lambda: now)


def test_the_first_time_goes_back_in_pieces_and_the_next_asks_for_what_is_new() -> None:
    kept, slurm = Kept(), Accounting(NOW - 2.5 * PIECE_S, NOW - 10, NOW + 50)
    assert poller(kept, slurm).poll() == 3  # two jobs, and a drain
    assert slurm.asked == [(NOW - n * PIECE_S, NOW - (n - 1) * PIECE_S) for n in (3, 2, 1)]
    assert poller(kept, slurm, NOW + 60).poll() == 1
    assert slurm.asked[3:] == [(NOW - OVERLAP_S, NOW + 60)]


def test_a_day_with_more_jobs_than_one_answer_holds_is_asked_in_pieces() -> None:
    kept, slurm = Kept(), Accounting(*(NOW - 60.0 * n for n in range(1, 4000)))
    asked = slurm.ask_jobs

    def bounded(since: float, until: float) -> list[EndedJob]:
        found = asked(since, until)
        if len(found) > 500:
            raise TooMuchError("sacct told more of jobs than 64 MiB")
        return found

    slurm.ask_jobs = bounded  # type: ignore[method-assign]
    assert poller(kept, slurm).poll() == 4000  # and a drain
    assert kept.cursors[CURSOR] == NOW
    slurm.jobs = Accounting(*[NOW + 30.0] * 501).jobs
    with pytest.raises(TooMuchError):  # of a quarter of an hour there is no less
        poller(kept, slurm, NOW + 60).poll()
    assert kept.cursors[CURSOR] < NOW + 60
    assert len(slurm.asked) < 40


def test_what_slurmdbd_hears_late_is_found_and_nothing_is_twice() -> None:
    kept, slurm = Kept(), Accounting(NOW - 10)
    poller(kept, slurm).poll()
    slurm.jobs += Accounting(NOW - 10, NOW - 3000).jobs[1:]
    assert poller(kept, slurm, NOW + 60).poll() == 1
    assert poller(kept, slurm, NOW + 120).poll() == 0


def test_an_outage_in_the_middle_goes_on_where_it_stood() -> None:
    kept, slurm = Kept(), Accounting(NOW - 2.5 * PIECE_S, NOW - 10)
    one = poller(kept, slurm)
    working = slurm.ask_jobs

    def broken(since: float, until: float) -> list[EndedJob]:
        if until == NOW:
            raise SlurmError("slurmdbd is away")
        return working(since, until)

    one._ask_jobs = broken
    with pytest.raises(SlurmError):
        one.poll()
    assert kept.cursors[CURSOR] == NOW - PIECE_S
    assert poller(kept, slurm).poll() == 1


def test_a_clock_that_was_put_back_misses_nothing() -> None:
    kept, slurm = Kept(), Accounting(NOW - 7000)
    kept.cursors[CURSOR] = NOW + 86400
    assert poller(kept, slurm, NOW - 6000).poll() >= 1


def test_what_fails_is_told_once_and_the_thread_ends(caplog: pytest.LogCaptureFixture) -> None:
    kept, slurm = Kept(), Accounting()
    asked = []

    def away(since: float) -> list[NodeState]:
        asked.append(since)
        raise SlurmError("slurmdbd is away")

    one = Poller(kept, "alps", 0.01, 60.0, slurm.ask_jobs, away, lambda: NOW)
    with caplog.at_level(logging.ERROR, "piolet-central"), pytest.MonkeyPatch.context() as patch:
        patch.setattr("piolet.central.poller._FAILED_WAIT_S", 0.01)
        one.start()
        wait_until(lambda: len(asked) >= 3)
        one.stop()
    assert one.failed == "slurmdbd is away"
    assert [record.getMessage() for record in caplog.records] == ["Slurm's accounting is not known: slurmdbd is away"]


def test_states_that_are_refused_cost_no_jobs() -> None:
    """As where slurmdbd has PrivateData=events: sacctmgr says that it is denied. They are asked for again from then."""
    kept, slurm = Kept(), Accounting(NOW - 10)
    one = poller(kept, slurm)

    def denied(since: float) -> list[NodeState]:
        raise SlurmError("Access/permission denied")

    one._ask_states = denied
    with pytest.raises(SlurmError, match="denied"):
        one.poll()
    assert [event.kind for event in kept.events.values()] == ["slurm.job_end"]
    asked = []
    for later in (86400.0, 86460.0):
        one = poller(kept, slurm, NOW + later)
        one._ask_states = lambda since: asked.append(since) or []  # type: ignore[func-returns-value]
        one.poll()
    assert asked == [NOW + 86400 - one._history_s, NOW + 86400 - OVERLAP_S]


def test_what_is_hidden_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    kept, slurm = Kept(), Accounting()
    asked: list[float] = []

    def states(since: float) -> list[NodeState]:
        asked.append(since)
        return []

    hides = lambda: frozenset(("jobs", "events"))  # noqa: E731
    one = Poller(kept, "alps", 0.01, 60.0, slurm.ask_jobs, states, lambda: NOW, hides)
    with caplog.at_level(logging.WARNING, "piolet-central"):
        one.start()
        wait_until(lambda: len(asked) >= 3)
        one.stop()
    (said,) = caplog.messages
    assert said.startswith("slurmdbd hides events and jobs from this account (PrivateData)")
