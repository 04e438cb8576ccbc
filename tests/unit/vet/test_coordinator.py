"""What the coordinator does of its own: limits, times, notes, nodes of another release."""

from __future__ import annotations

import dataclasses
import os
import time
from dataclasses import replace

import pytest
from piolet.api import Context, Verdict
from piolet.base.errors import VetError
from piolet.vet import localise, verdicts
from piolet.vet.coordinator import Coordinator
from piolet.vet.evals.nccl_bandwidth import NcclBandwidth
from piolet.vet.localise import Meeting
from piolet.vet.runner import plan, records, schedule, session
from piolet.vet.runner.plan import HOST, Plan

from tests.support.protocols import plan_of

PAIRS = "evals:\n- {type: network_pair, timeout: 1s}\n"


def begun(count: int) -> Coordinator:
    """Return a vetting whose nodes have said all but what comes of meetings."""
    names = [f"n{at}" for at in range(count)]
    leader = Coordinator(plan_of(PAIRS), names, lambda: 0.0)
    for name in names:
        leader.feed(name, records.encode("address", {"host": "10.0.0.1", "port": 1}))
        leader.feed(name, records.encode("end", {}))
    return leader


def test_a_node_that_cannot_read_an_order_says_so() -> None:
    leader = begun(4)
    leader.advance()
    leader.feed("n2", records.encode("failed", {"reason": "the order 'meet' is malformed"}))
    assert leader.found.lost == {"n2": "the order 'meet' is malformed"}


def test_lost_nodes_are_told_once() -> None:
    leader = begun(6)
    leader.advance()
    assert [kind(line) for line in leader.orders()] == ["table", "meet"]
    leader.lose("n1", "its task ended")
    for name in ("n0", "n2", "n3", "n4", "n5"):
        good = records.record(name, "network_pair", "network_pair", verdict(), 0.1)
        leader.feed(name, records.encode("met", {"round": 1, **good._asdict()}))
    leader.advance()
    assert [kind(line) for line in leader.orders()] == ["gone", "meet"]


def test_who_is_silent_twice_is_waited_for_no_more() -> None:
    """At ten thousand nodes each wait is half a minute."""
    now = 0.0
    names = [f"n{at}" for at in range(12)]
    leader = Coordinator(plan_of(PAIRS), names, lambda: now)
    for name in names:
        leader.feed(name, records.encode("address", {"host": "10.0.0.1", "port": 1}))
        leader.feed(name, records.encode("end", {}))
    waits = 0
    while not leader.done and waits < 9:
        leader.advance()
        decoded = [one for line in leader.orders() if (one := records.decode(line))]
        rounds = [content["round"] for kind, content in decoded if kind == "meet"]
        if not rounds and not leader.done:
            waits, now = waits + 1, leader.deadline
        for number in rounds:
            for name in set(names) - {"n5"}:
                good = records.record(name, "network_pair", "network_pair", verdict(), 0.1)
                leader.feed(name, records.encode("met", {"round": number, **good._asdict()}))
    assert leader.done and waits == 2
    assert leader.found.lost == {"n5": "it gave no answer in two meetings"}


def test_an_eval_whose_name_is_too_long_is_an_error() -> None:
    task = plan_of(PAIRS).tasks[0]
    leader = Coordinator(Plan("p", (replace(task, name="x" * 70_000),)), ["a", "b"], lambda: 0.0)
    for name in ("a", "b"):
        leader.feed(name, records.encode("address", {"host": "10.0.0.1", "port": 1}))
        leader.feed(name, records.encode("end", {}))
    with pytest.raises(VetError, match="more than the limit"):
        leader.advance()


def kind(line: bytes) -> str:
    decoded = records.decode(line)
    return decoded[0] if decoded else ""


def verdict() -> Verdict:
    return Verdict("pass", "", "bandwidth", 10.0)


def test_judging_ends_when_its_time_is_up() -> None:
    nodes = [f"n{at}" for at in range(600)]
    bad = [Meeting((a, b), 1.0, bad=True) for pairs in list(localise.rounds(nodes))[:4] for a, b in pairs]
    with pytest.raises(VetError, match="time for judging"):
        localise.localise(bad, "higher", 0.3, lambda: True)


def test_few_notes_of_many_bad_ways() -> None:
    """64 nodes made 476 of them."""
    nodes = [f"n{at}" for at in range(64)]
    found = [
        Meeting((a, b), 2.0 if turn % 3 == 0 else 10.0)
        for turn, pairs in enumerate(list(localise.rounds(nodes))[:45])
        for a, b in pairs
    ]
    faults, notes = localise.localise(found, "higher", 0.3)
    assert faults == []
    (note,) = notes
    assert note.startswith("the ways between two nodes are bad, but neither is with others: ") and len(note) < 300
    assert note.count(" and ") == 10 and note.endswith(" and 471 more")


@pytest.mark.parametrize("count", [0, 20, 21, 500])
def test_a_screen_has_twenty_notes(count: int) -> None:
    notes = verdicts.few([str(at) for at in range(count)])
    assert len(notes) == min(count, 20)
    assert count <= 20 or notes[-1] == f"{count - 19} more notes are left out"


def test_suspects_are_those_that_nothing_explains() -> None:
    nodes = [f"n{at}" for at in range(40)]
    found = [
        Meeting((a, b), 2.0 if "n7" in (a, b) or {a, b} == {"n1", "n2"} else 10.0)
        for pairs in localise.rounds(nodes)
        for a, b in pairs
    ]
    assert localise.suspects(found, "higher", 0.3) == ["n7", "n1", "n2"]


def test_times_grow_with_the_nodes() -> None:
    one = plan_of(PAIRS)
    assert plan.start_s(4) < 15.1 and 100 < plan.start_s(10_000) < 120
    assert one.meetings_s(4) < one.meetings_s(10_000) < 4 * one.meetings_s(4) + 60
    assert plan_of("evals:\n- type: limits\n").meetings_s(10_000) == 0


def test_an_order_above_the_limit_is_told() -> None:
    """Once the session ended without a word, and the node was 'no answer' in every round."""
    into, ours = os.pipe()
    os.write(ours, b"x" * 60_000)
    pid = os.fork()
    if pid == 0:
        os.write(ours, b"x" * 60_000 + b"\n")
        os._exit(0)
    said: list[bytes] = []
    context = Context("n1", time.monotonic() + 20)
    session.serve(plan_of(PAIRS), HOST, context, session.Place("", b"t" * 16), into, said.append)
    os.close(into)
    os.close(ours)
    os.waitpid(pid, 0)
    decoded = records.decode(said[-1])
    assert decoded is not None and decoded[0] == "failed"
    assert "more than the limit of 65536" in decoded[1]["reason"]


def test_groups_are_judged_each_by_itself() -> None:
    """The coordinator cuts the same groups as its nodes; one that is bad makes pairs meet."""
    names = [f"n{at}" for at in range(5)]
    for slow in (False, True):
        leader = Coordinator(plan_of("evals:\n- {type: nccl_bandwidth, together: 3}\n"), names, lambda: 0.0)
        for name in names:
            leader.feed(name, records.encode("end", {}))
        leader.advance()
        (order,) = [line for line in leader.orders() if kind(line) == "meet"]
        assert b'"all":3' in order
        for at, name in enumerate(names):
            bad = slow and at < 2  # the smaller group: n0 and n1
            said = Verdict("fail" if bad else "pass", "slow" if bad else "", "allreduce", 1.0 if bad else 10.0)
            one = records.record(name, "nccl_bandwidth", "nccl_bandwidth", said, 0.1)
            leader.feed(name, records.encode("met", {"round": 1, **one._asdict()}))
        leader.advance()
        assert leader.done is not slow
        if not slow:
            assert [record.outcome for record in leader.found.records] == ["pass"] * 5


def test_so_many_nodes_are_together_as_the_eval_says() -> None:
    fields = {field.name: field.default for field in dataclasses.fields(NcclBandwidth)}
    assert fields["together"] == schedule.TOGETHER
