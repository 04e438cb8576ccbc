"""Events of Slurm's accounting: whoever asks again has the same ones."""

from __future__ import annotations

import dataclasses

from piolet.central import accounted
from piolet.central.rules.replay import is_failure
from piolet.events.envelope import decode, encode
from piolet.events.kinds import KINDS
from piolet.slurm.past import EndedJob, NodeState

from tests.unit.central import making

JOB = EndedJob(12, "", 1000, "FAILED", 1, 0, ("node1", "node2"), 1.7e9, 1.7e9 + 10, 1.7e9 + 100)


def test_a_job_is_its_owners_word_but_for_a_node_that_failed() -> None:
    rows = [JOB, dataclasses.replace(JOB, state="NODE_FAIL", job=13)]
    mine, sites = accounted.events_of_jobs(rows, "alps")
    assert (mine.source, sites.source) == ("user", "site")
    assert (mine.node, mine.job, mine.uid, mine.time) == ("node1", 12, 1000, 1.7e9 + 100)
    assert mine.body["nodes"] == "node[1-2]"
    assert decode(encode(mine)) == mine
    assert mine.body.keys() <= KINDS["slurm.job_end"].body.keys()


def test_keys_are_the_same_again_and_another_runs_are_others() -> None:
    again = dataclasses.replace(JOB, submit=1.7e9 + 500, end=1.7e9 + 900)  # requeued
    first = [event.key for event in accounted.events_of_jobs([JOB, again], "alps")]
    assert first == [event.key for event in accounted.events_of_jobs([JOB, again], "alps")]
    assert len(set(first)) == 2
    assert {epoch for _, epoch, _ in first} <= accounted.EPOCHS


def test_a_job_of_many_nodes_is_none_of_one_node_however_they_are_called() -> None:
    """A list of hosts that is too long to be kept is told from a job of one node, which speaks of that node."""
    many = tuple(f"n{number * 7919 % 99991}x{number}y" for number in range(3000))
    rows = [dataclasses.replace(JOB, nodes=many, job=job, uid=job, state=state, end=making.START + job)
            for job, state in ((1, "FAILED"), (2, "FAILED"), (3, "FAILED"), (4, "NODE_FAIL"))]  # fmt: skip
    events = list(accounted.events_of_jobs(rows, "alps"))
    assert len(str(events[0].body["nodes"])) < 200 and all(decode(encode(event)) == event for event in events)
    assert making.concluded([making.of_catalogue("jobs-of-three-users")], events) == []
    assert not any(map(is_failure, events))


def test_a_job_that_never_ran_or_has_an_impossible_node_is_none() -> None:
    rows = [dataclasses.replace(JOB, nodes=()), dataclasses.replace(JOB, nodes=("../x",))]
    assert list(accounted.events_of_jobs(rows, "alps")) == []


def test_states_follow_each_other_and_the_last_one_ends_in_resume() -> None:
    rows = [
        NodeState("n1", 100.0, 200.0, "down", "Not responding", "slurm"),
        NodeState("n1", 200.0, 300.0, "drain", "disk", "root"),
        NodeState("n1", 400.0, None, "drain", "again", "root"),
        NodeState("n2", 100.0, 100.0, "unknown", "cold-start", "slurm"),
    ]
    events = list(accounted.events_of_states(rows, "alps"))
    assert [(event.time, event.body["state"]) for event in events] == [
        (100.0, "down"), (200.0, "drain"), (300.0, "resume"), (400.0, "drain"),
    ]  # fmt: skip
    assert all(decode(encode(event)) == event for event in events)
    # When the last one has ended, the rest is as it was.
    rows[2] = NodeState("n1", 400.0, 500.0, "drain", "again", "root")
    later = list(accounted.events_of_states(rows, "alps"))
    assert later[:-1] == events and later[-1].body["state"] == "resume"
