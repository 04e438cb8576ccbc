"""Whose steps are recorded: the site's lists of users and partitions, and who is asked what."""

from __future__ import annotations

import pytest
from piolet.base.errors import SlurmError
from piolet.observe.found import FoundStep
from piolet.observe.settings import ObserveConfig
from piolet.observe.switches import Switches

from tests.support.waiting import wait_until


def step(job: str = "7", uid: int = 1000) -> FoundStep:
    return FoundStep(job, "0", uid, uid, (), ("/x", 1), 0.0)


def never(_: object) -> str:
    raise AssertionError("nobody is to be asked")


def settled(switches: Switches, one: FoundStep) -> bool:
    wait_until(lambda: switches.wanted(one) is not None, 10, "an answer")
    return bool(switches.wanted(one))


def test_without_lists_nobody_is_asked() -> None:
    assert Switches(ObserveConfig(), never, never).wanted(step()) is True


def test_a_user_is_named_or_numbered() -> None:
    switches = Switches(ObserveConfig(users="-alice"), never, lambda uid: {1000: "alice", 1001: "bob"}[uid])
    assert [settled(switches, step(uid=uid)) for uid in (1000, 1001)] == [False, True]
    assert settled(Switches(ObserveConfig(users="1001"), never, lambda _: "bob"), step(uid=1001))


def test_slurm_is_asked_for_the_partition_once_a_job() -> None:
    asked: list[str] = []

    def partition(job: str) -> str:
        asked.append(job)
        return {"7": "debug", "8": "normal"}[job]

    switches = Switches(ObserveConfig(partitions="-debug"), partition, never)
    assert [settled(switches, step(job)) for job in ("7", "8", "7", "8")] == [False, True, False, True]
    assert asked == ["7", "8"]


@pytest.mark.parametrize("error", [SlurmError("slurmctld does not answer"), OSError(2, "no scontrol"), KeyError("uid")])
def test_what_is_not_known_is_not_recorded(error: Exception) -> None:
    calls = []

    def fails(job: str) -> str:
        calls.append(job)
        raise error

    switches = Switches(ObserveConfig(partitions="normal"), fails, never)
    assert switches.wanted(step()) is None
    wait_until(lambda: bool(calls) and switches.wanted(step()) is None and switches._asked is None, 10, "the failure")
    assert switches.wanted(step()) is None
    assert calls == ["7"]  # and is not asked again at once
