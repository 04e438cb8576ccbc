"""What the site's people say becomes records, and rules see them: a case is closed, a node concluded unfit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from piolet.base.errors import EventError
from piolet.central import hands
from piolet.central.answers import Answers
from piolet.central.doors import RefusedError
from piolet.central.intake import arrival
from piolet.central.ledger import Judge, Ledger
from piolet.central.rules.engine import Engine
from piolet.central.store.database import connect
from piolet.central.store.reader import Reader
from piolet.central.store.writer import Arrival, Refused, Writer
from piolet.events import batch
from piolet.events.envelope import encode
from piolet.transport.statements import Statement

from tests.support.waiting import wait_until
from tests.unit.central.making import CATALOGUE, DAY, RULE, START, event, rules


@pytest.fixture
def answers(tmp_path: Path) -> Iterator[Answers]:
    """Answers of a service that has three repairs of n1, and so an open case."""
    url = f"sqlite:///{tmp_path}/store"
    writer = Writer(connect(url, create=True))
    engine = Engine(rules(CATALOGUE))
    judge = Judge(Reader(connect(url), "c1"), engine)
    ledger = Ledger(writer, judge, clock=lambda: START + 30 * DAY)
    made = Answers(
        Reader(connect(url), "c1"), ledger, judge, ["root"], lambda: False, engine.rules, lambda: START + 31 * DAY
    )
    ledger.start()
    judge.start(ledger)
    ledger.add(Arrival("n1", [event("node.heartbeat", 0, seq=1)], START)).result()
    for number in range(3):
        ledger.take_own([hands.repaired("c1", "n1", START + number * DAY, {"text": "a fan", "by": "uid 0"})])
    yield made
    judge.stop()
    ledger.stop()


def say(answers: Answers, what: str, uid: int | None = 0, **said: str) -> dict[str, Any]:
    """Say something as a user."""
    return answers.answer(uid, "POST", what, {}, json.dumps(said).encode())


def cases(answers: Answers) -> list[dict[str, Any]]:
    """Return the open cases."""
    nodes = answers.answer(0, "GET", "offenders", {}, b"")["nodes"]
    return [case for node in nodes for case in node["cases"]]


def test_who_acknowledges_a_case_closes_it(answers: Answers) -> None:
    wait_until(lambda: len(cases(answers)) == 1, what="the case of three repairs")
    (case,) = cases(answers)
    assert case["rule"] == "repairs-in-all"
    say(answers, "ack", case=case["case"], text="a new board is on its way")
    wait_until(lambda: not cases(answers), what="the case's end")

    def lines() -> str:
        return "".join(answers.answer(0, "GET", "case", {"id": case["case"]}, b"")["lines"])

    wait_until(lambda: "somebody has looked at it" in lines(), what="the case's end, written down")


def test_a_re_vet_says_which_case_of_the_node_asked_for_it(answers: Answers) -> None:
    wait_until(lambda: len(cases(answers)) == 1, what="the case of three repairs")
    (case,) = cases(answers)
    answers.ledger.add(Arrival("n2", [event("node.heartbeat", 0, "n2", seq=1)], START)).result()
    with pytest.raises(EventError, match="node 'n2' has no case"):
        say(answers, "revetted", node="n2", outcome="good", request=case["case"])
    assert say(answers, "revetted", node="n1", outcome="good", request=case["case"])["noted"]


def test_a_re_vet_that_failed_makes_a_node_unfit_and_one_that_did_not_ends_that(answers: Answers) -> None:
    say(answers, "revetted", node="n1", outcome="bad", reason="nccl at a third")
    wait_until(lambda: {one["rule"] for one in cases(answers)} == {"repairs-in-all", "revet-failed"}, what="the case")
    assert next(one for one in cases(answers) if one["rule"] == "revet-failed")["action"] == "drain"
    answers._clock = lambda: START + 32 * DAY
    answers.ledger._clock = answers._clock
    say(answers, "revetted", node="n1", outcome="good")
    wait_until(lambda: {one["rule"] for one in cases(answers)} == {"repairs-in-all"}, what="its end")


@pytest.mark.parametrize(
    ("what", "said", "error"),
    [
        ("revetted", {"node": "n1", "outcome": "fine"}, "a re-vet comes out good or bad, not 'fine'"),
        ("revetted", {"node": "n9", "outcome": "bad"}, "nothing is known of a node 'n9'"),
        ("revetted", {"node": "n1", "outcome": "good", "request": "0" * 16}, f"node 'n1' has no case '{'0' * 16}'"),
        ("repaired", {"text": "x"}, "nothing is known of a node ''"),
        ("repaired", {"node": "n1", "text": " "}, "of a repair it is to be said what was done, in one line"),
        ("ack", {"case": "0" * 16, "text": "x"}, f"there is no case {'0' * 16}"),
        ("ack", {"text": "x"}, "what is acknowledged is a case"),
        ("note", {"node": "n9", "text": "x"}, "nothing is known of a node n9"),
        ("note", {"text": "x"}, "the note is of no node and of no case"),
        ("note", {"node": "\0", "text": "x"}, "node is '\\x00'"),
        ("note", {"case": "\ud800", "text": "x"}, "case is '\\ud800'"),
        ("ack", {"case": "\ud800", "text": "x"}, "case is '\\ud800'"),
        ("revetted", {"node": "n1", "outcome": "good", "request": "\ud800"}, "request is '\\ud800'"),
        ("repaired", {"node": "n1", "text": "x\n"}, "text is one line of at most 2000 printable characters"),
        (
            "repaired",
            {"node": "n1", "text": "x", "ticket": "9" * 2001},
            "ticket is one line of at most 2000 printable characters",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_said(answers: Answers, what: str, said: dict[str, Any], error: str) -> None:
    with pytest.raises(EventError) as raised:
        say(answers, what, **said)
    assert raised.value.message == error


def test_a_case_of_a_rule_that_is_no_longer_one_is_not_open(answers: Answers, tmp_path: Path) -> None:
    wait_until(lambda: len(cases(answers)) == 1, what="the case of three repairs")
    (case,) = cases(answers)
    for text, left in ((CATALOGUE, [case]), (RULE, [])):
        reader = Reader(connect(f"sqlite:///{tmp_path}/store"), "c1")
        judge = Judge(reader, Engine(rules(text)))
        later = Answers(reader, answers.ledger, judge, ["root"], lambda: False, clock=lambda: START + 31 * DAY)
        judge.start(answers.ledger)
        wait_until(lambda judge=judge: judge.is_caught_up, what="the rules to judge the store")  # type: ignore[misc]
        assert cases(later) == left
        judge.stop()


@pytest.mark.parametrize("what", ["repaired", "revetted"])
def test_only_staff_says_it(answers: Answers, what: str) -> None:
    with pytest.raises(RefusedError):
        say(answers, what, uid=1000, node="n1", outcome="bad")


def test_no_node_says_it_for_them() -> None:
    forged = encode(hands.revetted("c1", "n1", START, {"outcome": "bad"}))
    statement = Statement("POST", "/v1/events", "c1", "n1", "0" * 64, "", START)
    (kept,) = arrival(statement, batch.pack([forged]), "", START).records
    assert isinstance(kept, Refused)
