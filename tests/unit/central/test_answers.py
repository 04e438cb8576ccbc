"""What is answered of nodes: who is silent, what is said of one that never spoke, and whose line it is."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from piolet.base.errors import EventError
from piolet.central.accounted import STATES
from piolet.central.answers import Answers
from piolet.central.conclusions import OPEN, Conclusion
from piolet.central.ledger import Judge, Ledger
from piolet.central.recent import Recent, Watched
from piolet.central.rules.engine import Engine
from piolet.central.store import wordings
from piolet.central.store.database import connect
from piolet.central.store.reader import Reader
from piolet.central.store.writer import Arrival, Writer
from piolet.central.told import Told
from piolet.cli.centralasks import _node, _status

from tests.support.waiting import wait_until
from tests.unit.central.making import CATALOGUE, DAY, HOUR, MINUTE, START, event, rules


@pytest.fixture
def answers(tmp_path: Path) -> Iterator[Answers]:
    """Answers an hour after four nodes spoke; of three Slurm has spoken since, and of a fifth nobody else has."""
    url, recent, now = f"sqlite:///{tmp_path}/store", Recent(), [START]
    writer = Writer(connect(url, create=True))
    judge = Judge(Reader(connect(url), "c1"), Watched(Engine(rules(CATALOGUE)), recent))
    ledger = Ledger(writer, judge, clock=lambda: now[0])
    reader = Reader(connect(url), "c1")
    made = Answers(reader, ledger, judge, ["root"], lambda: False, rules(CATALOGUE), clock=lambda: START + HOUR)
    Told(made, recent, lambda: made._clock())
    ledger.start()
    judge.start(ledger)
    for name, at in (("gone", 0.0), ("down", 0.0), ("saving", 0.0), ("woken", 0.0), ("well", HOUR - MINUTE)):
        ledger.add(Arrival(name, [event("node.heartbeat", at, name, seq=1)], START + at)).result()
    now[0] = START + HOUR - MINUTE
    for name, state in (("down", "down"), ("saving", "powered_down"), ("woken", "powered_down"), ("known", "down")):
        ledger.take_own([event("slurm.node_state", 2 * MINUTE, name, epoch=STATES, body={"state": state})])
    ledger.take_own([event("slurm.node_state", 5 * MINUTE, "woken", epoch=STATES, body={"state": "resume"})])
    wait_until(lambda: judge.is_caught_up, what="the rules")
    yield made
    judge.stop()
    ledger.stop()


def ask(answers: Answers, what: str, **said: str) -> dict[str, Any]:
    """Ask as root."""
    return answers.answer(0, "GET", what, said, b"")


def test_a_word_of_slurms_is_none_of_the_nodes(answers: Answers) -> None:
    said = ask(answers, "status")
    assert said["silent_nodes"] == ["down", "gone", "woken"] and (said["silent"], said["nodes"]) == (3, 6)


def test_a_node_that_is_retired_is_not_waited_for(answers: Answers) -> None:
    """Staff has seen that it is silent, or Slurm has it no longer: it is none of the silent ones, and is counted."""

    def beat(node: str, seq: int, at: float) -> None:
        answers.ledger.add(Arrival(node, [event("node.heartbeat", at, node, seq=seq)], START + at)).result()

    def silent() -> tuple[list[str], list[str]]:
        said = ask(answers, "status")
        assert (said["silent"], said["retired"]) == (len(said["silent_nodes"]), len(said["retired_nodes"]))
        return said["silent_nodes"], said["retired_nodes"]

    for number in range(25):
        beat("well", 2 + number, HOUR + number * 2 * MINUTE)
    answers._clock = lambda: START + 2 * HOUR - 5 * MINUTE
    wait_until(lambda: len(ask(answers, "offenders")["nodes"]) == 2, what="the cases")
    cases = {node["node"]: node["cases"][0] for node in ask(answers, "offenders")["nodes"]}
    assert set(cases) == {"down", "gone"} and {one["rule"] for one in cases.values()} == {"silent"}
    said = f'{{"case": "{cases["gone"]["case"]}", "text": "scrapped"}}'.encode()
    answers.answer(0, "POST", "ack", {}, said)
    assert silent() == (["down", "woken"], ["gone"])
    answers.is_gone = lambda node: node == "down"
    assert silent() == (["woken"], ["down", "gone"])
    assert _status(ask(answers, "status"))[-2:] == [
        "1 node said nothing for a quarter of an hour: woken",
        "2 nodes are retired: not in Slurm any more, or acknowledged as silent",
    ]
    users = answers.answer(1000, "GET", "status", {}, b"")
    assert users["retired"] == 2 and not {"silent_nodes", "retired_nodes"} & set(users)
    beat("gone", 2, 2 * HOUR)  # it is back, and what was acknowledged was of before
    answers._clock = lambda: START + 3 * HOUR
    assert silent() == (["gone", "well", "woken"], ["down"])


def test_a_note_on_the_case_acknowledges_nothing(answers: Answers) -> None:
    """Nor does the acknowledgement of another case of the node."""
    opened = [_opened("silent", "a" * 16, 40 * MINUTE), _opened("gpu-lost", "b" * 16, 40 * MINUTE)]
    answers.ledger.call(lambda writer: wordings.conclude(writer, [(one, 1) for one in opened], START + HOUR)).result()
    for kind, case in ((wordings.NOTE, "a" * 16), (wordings.ACKNOWLEDGED, "b" * 16)):
        said = functools.partial(wordings.say, kind=kind, text="seen", uid=0, now=START + HOUR, case=case)
        answers.ledger.call(said).result()
        assert ask(answers, "status")["retired_nodes"] == []
    said = functools.partial(wordings.say, kind=wordings.ACKNOWLEDGED, text="x", uid=0, now=START + HOUR, case="a" * 16)
    answers.ledger.call(said).result()
    assert ask(answers, "status")["retired_nodes"] == ["gone"]


def _opened(rule: str, case: str, after: float) -> Conclusion:
    return Conclusion(case, rule, "0" * 16, "c1", "gone", "", START + after, OPEN, "ticket", "gone: …", (), {})


def test_of_a_node_that_never_spoke_it_is_said(answers: Answers) -> None:
    said = ask(answers, "node", name="known")
    assert said["last"] is None and _node(said)[0] == "known: it never said anything itself"
    assert ask(answers, "node", name="down")["last"] == START
    never, drained = "  it has never said anything to the central service", "  Slurm had it in state down"
    assert ask(answers, "about", name="known")["lines"][1:] == [never, drained]
    assert ask(answers, "about", name="gone")["lines"][1] == "  nothing was heard of it for 60 minutes"


def test_what_counts_against_a_node_is_named(answers: Answers) -> None:
    """Also what no table of severities speaks of. What a program does is not held against it."""
    port, said = {"subject": "port:hsn0", "severity": ""}, "NVRM: Xid (PCI:0000:41:00): 79"
    events = [
        event("link.flap", 60, "well", body={"state": "up", "flaps": 2, "rate": "200000"}, **port),
        event("link.flap", 120, "well", body={"state": "up", "flaps": 1, "rate": "200000"}, **port),
        event("link.flap", 180, "well", body={"state": "up", "flaps": 0, "rate": "100000"}, **port),
        event("gpu.xid", 240, "well", severity="fatal", subject="gpu:GPU-1", body={"xid": 79, "text": said}),
        event("gpu.xid", 300, "well", severity="info", subject="gpu:GPU-1", uid=7, body={"xid": 31, "text": "x"}),
    ]
    numbered = [replace(one, seq=2 + number) for number, one in enumerate(events)]
    answers.ledger.add(Arrival("well", numbered, START + HOUR)).result()
    drained = [event("slurm.node_state", at, "well", epoch=STATES, seq=at, body={"state": state, "reason": "bad link"})
               for at, state in ((400, "drain"), (500, "resume"))]  # fmt: skip
    answers.ledger.take_own(drained)
    wait_until(lambda: answers.judge.is_caught_up, what="the rules")
    lines = [line for line in ask(answers, "about", name="well")["lines"][1:] if "open:" not in line]
    assert sorted(lines) == [
        "  Slurm had it in state drain: bad link", f"  gpu.xid: {said}", "  hsn0 changed its speed",
        "  hsn0 went down (3 times)",
    ]  # fmt: skip


@pytest.mark.parametrize("job", ["", "x", "-1", "²", "1" * 5000])
def test_a_line_is_of_a_job(answers: Answers, job: str) -> None:
    with pytest.raises(EventError, match="the job is no number"):
        ask(answers, "line", job=job, step="0")


@pytest.mark.parametrize(("what", "name"), [("node", "name"), ("about", "name"), ("case", "id")])
@pytest.mark.parametrize("text", ["\0", "n1\0", "\ud800", "\x1b[2J"])
def test_a_name_that_is_none_is_not_looked_for(answers: Answers, what: str, name: str, text: str) -> None:
    with pytest.raises(EventError) as raised:
        ask(answers, what, **{name: text})
    assert raised.value.message == f"{name} is {text!r}"


def test_whoever_may_ask_how_many_spare_nodes_a_job_needs(answers: Answers) -> None:
    def spares(nodes: str, hours: str) -> dict[str, Any]:
        return answers.answer(1000, "GET", "spares", {"nodes": nodes, "hours": hours}, b"")

    assert spares("64", "24") == {"line": None, "failures": 2, "node_hours": pytest.approx(0.15)}
    for node in (f"m{number}" for number in range(20)):
        beats = [event("node.heartbeat", at, node, seq=seq) for seq, at in ((1, 0), (2, 30 * DAY))]
        answers.ledger.add(Arrival(node, beats, START + 30 * DAY)).result()
    wait_until(lambda: answers.judge.is_caught_up, what="the rules")
    answers._clock = lambda: START + 31 * DAY
    line = "2 spare nodes for 64 nodes over 24 h: 2 failures in 14,400 node-hours here"
    assert spares("64", "24")["line"] == line


@pytest.mark.parametrize(
    ("nodes", "hours"),
    [("", "1"), ("0", "1"), ("x", "1"), ("1" * 7, "1"), ("²", "1"), ("4", "nan"), ("4", "-1"), ("4", ""), ("4", "inf")],
)
def test_a_job_that_is_none_needs_no_spares(answers: Answers, nodes: str, hours: str) -> None:
    with pytest.raises(EventError):
        ask(answers, "spares", nodes=nodes, hours=hours)


@pytest.mark.parametrize("private", [False, True])
def test_what_the_kernel_says_of_a_users_process_is_for_that_user(answers: Answers, private: bool) -> None:
    """The driver names a program that faults, and the kernel one that it ends: the rest of its words is for all."""
    of_user = {"uid": 1001, "job": 7, "step": "0"}
    records = [
        event("gpu.xid", HOUR, "well", seq=2, severity="info", body={"xid": 31}, **of_user),
        event("gpu.xid", HOUR, "well", seq=3, severity="fatal", body={"xid": 48}),
        event("kernel.oom", HOUR, "well", seq=4, body={"scope": "cgroup"}, **of_user),
    ]
    answers.ledger.add(Arrival("well", records, START + 2 * HOUR)).result()
    answers._is_private = lambda: private

    def told(uid: int) -> tuple[set[tuple[str, object]], dict[str, tuple[int, int]]]:
        said = answers.answer(uid, "GET", "node", {"name": "well"}, b"")
        shown = {(one["kind"], one.get("uid")) for one in said["records"] if one["kind"] in all_of_it}
        counts = {kind: (one["records"], one["users"]) for kind, one in said["counts"].items() if kind in all_of_it}
        return shown, counts

    everything = {("gpu.xid", 1001), ("gpu.xid", None), ("kernel.oom", 1001)}
    all_of_it = {"gpu.xid": (2, 1), "kernel.oom": (1, 1)}
    assert told(0) == (everything, all_of_it)
    assert told(1001)[0] == everything, "his own"
    assert told(1000)[0] == {("gpu.xid", None)}
    assert told(1000)[1] == ({"gpu.xid": (1, 0)} if private else all_of_it)


def test_where_the_site_hides_what_users_do_no_job_and_no_case_of_few_is_shown(
    answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither before nor after it is closed, nor where its records have moved to the archive."""
    failed = {"epoch": "b" * 16, "uid": 1001, "body": {"state": "fail"}}
    records = [event("vet.verdict", HOUR + number * HOUR, "well", seq=1 + number, job=7 + number, **failed)
               for number in range(2)]  # fmt: skip
    answers.ledger.add(Arrival("well", records, START + 2 * HOUR)).result()
    killed = event("kernel.oom", HOUR, "well", seq=2, job=7, step="0", body={"scope": "cgroup"})
    answers.ledger.add(Arrival("well", [killed], START + 2 * HOUR)).result()
    wait_until(lambda: len(ask(answers, "node", name="well")["cases"]) == 1, what="the case")
    answers._is_private = lambda: True
    (case,) = ask(answers, "node", name="well")["cases"]

    def told(uid: int) -> tuple[list[str], list[object]]:
        said = answers.answer(uid, "GET", "node", {"name": "well"}, b"")
        ooms = [one for one in said["records"] if one["kind"] == "kernel.oom"]
        return [one["state"] for one in said["cases"]], [(one.get("job"), one.get("step")) for one in ooms]

    assert told(0) == (["open"], [(7, "0")])
    assert told(1000) == ([], [(None, None)])
    assert told(1001) == (["open"], [(None, None)]), "his own"
    with pytest.raises(EventError, match="there is no case"):
        answers.answer(1000, "GET", "case", {"id": case["case"]}, b"")
    with monkeypatch.context() as patch:
        patch.setattr(answers.reader, "record", lambda *_: None)
        assert told(1000)[0] == told(1001)[0] == [] and told(0)[0] == ["open"]
    answers._clock = answers.ledger._clock = lambda: START + 3 * HOUR
    answers.answer(0, "POST", "revetted", {}, b'{"node": "well", "outcome": "good"}')
    wait_until(lambda: told(0)[0] == ["open", "closed"], what="its end")
    assert told(1000)[0] == []
