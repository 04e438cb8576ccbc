"""What records come to: nothing fails open, policies hold, the best nodes are chosen."""

from __future__ import annotations

import dataclasses

import pytest
from piolet.api import FAIL, INCONCLUSIVE, PASS, Verdict, at_least, at_most, worst
from piolet.vet import screen, verdicts
from piolet.vet.runner import records
from piolet.vet.runner.plan import Plan, Task
from piolet.vet.runner.records import Record

NODES = ["n1", "n2", "n3", "n4", "n5", "n6"]


def task(name: str = "a", **changes: object) -> Task:
    return dataclasses.replace(Task(name, name, f"m:{name}"), **changes)  # type: ignore[arg-type]


def row(node: str, outcome: str = PASS, name: str = "a", value: float | None = None, **details: object) -> Record:
    verdict = Verdict(outcome, "" if outcome == PASS else "because", "measure", value, None, "GB/s", details)
    return records.record(node, name, name, verdict, 0.1)


def test_nothing_evaluated_is_not_good() -> None:
    decision = verdicts.decide(Plan("p", ()), NODES, [])
    assert decision.good == []
    assert decision.abort == "nothing was checked"


def test_a_node_that_tells_nothing_is_inconclusive_and_left_out() -> None:
    decision = verdicts.decide(Plan("p", (task(),)), NODES[:3], [row("n1"), row("n2")], {"n3": "its task ended"})
    assert decision.bad == ["n3"]
    assert decision.reasons["n3"] == ["a: its task ended"]


def test_the_worst_of_two_answers_counts() -> None:
    decision = verdicts.decide(Plan("p", (task(),)), ["n1"], [row("n1"), row("n1", FAIL), row("n1")])
    assert decision.bad == ["n1"]


def test_answers_for_others_and_for_unknown_evals_are_dropped() -> None:
    found = [row("n1"), row("stranger", FAIL), row("n1", FAIL, "unknown")]
    decision = verdicts.decide(Plan("p", (task(),)), ["n1"], found)
    assert decision.good == ["n1"]
    assert len(decision.records) == 1


@pytest.mark.parametrize(
    ("outcome", "changes", "state", "aborts"),
    [
        (FAIL, {}, "bad", False),
        (FAIL, {"on_fail": "warn"}, "warned", False),
        (FAIL, {"on_fail": "abort"}, "bad", True),
        (INCONCLUSIVE, {}, "bad", False),
        (INCONCLUSIVE, {"on_inconclusive": "warn"}, "warned", False),
        (INCONCLUSIVE, {"on_inconclusive": "pass"}, "good", False),
        (INCONCLUSIVE, {"on_fail": "abort"}, "bad", True),
        (INCONCLUSIVE, {"on_fail": "abort", "on_inconclusive": "warn"}, "warned", False),
        (PASS, {"on_fail": "abort"}, "good", False),
    ],
)
def test_policies(outcome: str, changes: dict[str, str], state: str, aborts: bool) -> None:
    decision = verdicts.decide(Plan("p", (task(**changes),)), ["n1"], [row("n1", outcome)])
    assert decision.state == {"n1": state}
    assert bool(decision.abort) is aborts


def test_a_pass_with_a_reason_is_a_warning() -> None:
    """The node is good, its reason is shown, and nodes without one are taken first."""
    worn = dataclasses.replace(row("n1"), reason="GPU 0: memory rows are remapped")
    decision = verdicts.decide(Plan("p", (task(on_fail="abort"),)), NODES[:3], [worn, row("n2"), row("n3")])
    assert decision.state == {"n1": "warned", "n2": "good", "n3": "good"}
    assert decision.abort == ""
    assert screen.left_out(decision) == ["warning: n1: a: GPU 0: memory rows are remapped"]
    assert verdicts.choose(decision, 2) == ["n2", "n3"]


def test_peers_find_the_slow_node() -> None:
    plan = Plan("p", (task(baseline="peers", better="higher", effect=0.1),))
    found = [row(node, value=100.0 + index / 10) for index, node in enumerate(NODES)]
    found[3] = row("n4", value=60.0)
    decision = verdicts.decide(plan, NODES, found)
    assert decision.bad == ["n4"]
    assert "below the limit" in decision.reasons["n4"][0]


def test_too_few_peers_are_inconclusive() -> None:
    plan = Plan("p", (task(baseline="peers", better="higher"),))
    decision = verdicts.decide(plan, ["n1"], [row("n1", value=1.0)])
    assert decision.records[0].outcome == INCONCLUSIVE


def test_the_odd_fingerprint_is_left_out() -> None:
    plan = Plan("p", (task(better="same"),))
    found = [row(node, same={"kernel": "6.1" if node != "n2" else "5.14"}) for node in NODES]
    decision = verdicts.decide(plan, NODES, found)
    assert decision.bad == ["n2"]
    assert "kernel is '5.14', not '6.1'" in decision.reasons["n2"][0]


def test_history_finds_a_node_that_got_slower() -> None:
    one = task(baseline="history", better="higher", effect=0.1)
    plan, past = Plan("p", (one,)), {("n1", one.digest()): [100.0, 101.0, 99.0, 100.0]}
    assert verdicts.decide(plan, ["n1"], [row("n1", value=70.0)], history=past).bad == ["n1"]
    assert verdicts.decide(plan, ["n1"], [row("n1", value=97.0)], history=past).bad == []
    assert verdicts.decide(plan, ["n1"], [row("n1", value=70.0)]).bad == []  # no past, no judgement


def decision(states: dict[str, str]) -> verdicts.Decision:
    return verdicts.Decision(states, {node: [] for node in states}, [])


def test_the_best_run_is_chosen() -> None:
    good = dict.fromkeys(NODES, "good")
    assert verdicts.choose(decision({**good, "n2": "bad"}), 4) == ["n3", "n4", "n5", "n6"]
    assert verdicts.choose(decision({**good, "n1": "warned"}), 5) == ["n2", "n3", "n4", "n5", "n6"]
    assert verdicts.choose(decision({**good, "n1": "warned", "n2": "bad"}), 5) == ["n1", "n3", "n4", "n5", "n6"]
    assert verdicts.choose(decision(good), 6) == NODES
    assert verdicts.choose(decision({**good, "n2": "bad"}), 6) == []
    assert verdicts.choose(decision(dict.fromkeys(NODES, "bad")), 1) == []


def test_the_screen_names_the_bad_nodes_and_why() -> None:
    plan = Plan("ml", (task("a", unit="GB/s", better="higher"), task("b")))
    found = [row(node, name=name, value=10.0) for node in NODES for name in ("a", "b") if (node, name) != ("n3", "b")]
    text = screen.render(plan, verdicts.decide(plan, NODES, found, {"n3": "its task ended"}), 1.25)
    assert "vetting 'ml': 5 of 6 nodes good, 1.25 s" in text
    assert "left out: n3: b: its task ended" in text
    line = next(line for line in text.splitlines() if line.startswith("b "))
    assert line.split()[1:4] == ["5", "0", "1"]
    assert max(map(len, text.splitlines())) < 200


def test_the_screen_stays_one_screen() -> None:
    nodes = [f"n{i}" for i in range(500)]
    plan = Plan("ml", (task(),))
    text = screen.render(plan, verdicts.decide(plan, nodes, []), 1.0)
    assert len(text.splitlines()) < 30
    assert "480 more nodes" in text


def test_verdicts_of_the_contract() -> None:
    assert at_most("t", 3.0, 2.0, "s").outcome == FAIL
    assert at_most("t", 2.0, 2.0, "s").outcome == PASS
    assert at_least("t", 1.0, 2.0, "s").outcome == FAIL
    assert at_least("t", float("nan"), 2.0, "s").outcome == INCONCLUSIVE
    assert at_least("t", 1.0, None, "s").outcome == PASS
    assert worst([]).outcome == INCONCLUSIVE
    assert worst([Verdict(PASS), Verdict(INCONCLUSIVE, "x"), Verdict(FAIL, "y")]).outcome == FAIL
    with pytest.raises(ValueError, match="needs a reason"):
        Verdict(FAIL)
    with pytest.raises(ValueError, match="a verdict is one of"):
        Verdict("good")


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"hello",
        b"{}",
        b"[1]",
        b'{"piolet-vet": 3}',
        b"\xff",
        b"[" * 70_000,
        b'{"piolet-vet":"verdict"' + b" " * 70_000,
    ],
)
def test_lines_of_others_are_dropped(line: bytes) -> None:
    assert records.decode(line) is None


@pytest.mark.parametrize(
    "change",
    [
        {"outcome": "good"},
        {"value": "3"},
        {"value": float("inf")},
        {"reason": 3},
        {"details": []},
        {"extra": 1},
        {"seconds": None},
    ],
)
def test_malformed_records_are_dropped(change: dict[str, object]) -> None:
    assert records.to_record({**dataclasses.asdict(row("n1")), **change}) is None


def test_a_record_survives_its_journey() -> None:
    one = row("n1", FAIL, value=3.0, why="ü")
    decoded = records.decode(records.encode_record(one).rstrip(b"\n"))
    assert decoded is not None and decoded[0] == "verdict"
    assert records.to_record(decoded[1]) == one
    long = records.encode_record(row("n1", text="x" * 100_000))
    assert len(long) < records.LINE_MAX
