"""What records come to: nothing fails open, policies hold, the best nodes are chosen."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import pytest
from piolet.api import FAIL, INCONCLUSIVE, PASS, Verdict, at_least, at_most, worst
from piolet.vet import cache, localise, problems, screen, verdicts
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
    worn = row("n1")._replace(reason="GPU 0: memory rows are remapped")
    decision = verdicts.decide(Plan("p", (task(on_fail="abort"),)), NODES[:3], [worn, row("n2"), row("n3")])
    assert decision.state == {"n1": "warned", "n2": "good", "n3": "good"}
    assert decision.abort == ""
    plan = Plan("p", (task(on_fail="abort"),))
    assert problems.lines(plan, decision) == ["warning: n1: a: GPU 0: memory rows are remapped"]
    assert verdicts.choose(decision, 2) == ["n2", "n3"]


def test_peers_find_the_slow_node() -> None:
    plan = Plan("p", (task(baseline="peers", better="higher", effect=0.1),))
    found = [row(node, value=100.0 + index / 10) for index, node in enumerate(NODES)]
    found[3] = row("n4", value=60.0)
    decision = verdicts.decide(plan, NODES, found)
    assert decision.bad == ["n4"]
    assert "below the limit" in decision.reasons["n4"][0]


def rates(values: list[float], better: str = "higher", **changes: object) -> list[Record]:
    """Return what nodes say of a user's own class, of which the protocol knows nothing."""
    return [
        row(node, value=value)._replace(better=better, effect=0.1, **changes)  # type: ignore[arg-type]
        for node, value in zip(NODES, values, strict=False)
    ]


@pytest.mark.parametrize(
    ("values", "better", "bad"),
    [
        ([100.0, 50.0, 100.0, 100.0], "higher", ["n2"]),
        ([100.0, 200.0, 100.0, 100.0], "higher", []),
        ([100.0, 200.0, 100.0, 100.0], "lower", ["n2"]),
        ([100.0, 50.0, 100.0, 100.0], "lower", []),
    ],
)
def test_a_users_own_class_is_compared_as_it_says(values: list[float], better: str, bad: list[str]) -> None:
    plan = Plan("p", (task(baseline="peers"),))
    decision = verdicts.decide(plan, NODES[:4], rates(values, better))
    assert decision.bad == bad
    if bad:
        assert f"is {'below' if better == 'higher' else 'above'} the limit" in decision.reasons["n2"][0]
    one = task(baseline="history")
    past = {("n1", one.digest()): [100.0] * 6}
    (judged,) = verdicts.against_history(Plan("p", (one,)), rates([values[1]], better), past)
    assert (judged.outcome == FAIL) is bool(bad)


@pytest.mark.parametrize("better", ["", "bigger"])
def test_what_does_not_say_what_is_better_is_not_compared(better: str) -> None:
    plan = Plan("p", (task(baseline="peers"),))
    decision = verdicts.decide(plan, NODES[:4], rates([100.0, 50.0, 100.0, 100.0], better))
    assert {record.outcome for record in decision.records} == {INCONCLUSIVE}
    assert "does not say what is better" in decision.reasons["n1"][0]


def test_nodes_with_several_versions_of_a_class_are_not_compared() -> None:
    plan = Plan("p", (task(baseline="peers"),))
    found = [*rates([100.0, 100.0, 100.0, 100.0]), row("n5", value=50.0)._replace(better="lower")]
    decision = verdicts.decide(plan, NODES[:5], found)
    assert decision.good == [] and "several versions of its class" in decision.reasons["n5"][0]


@pytest.mark.parametrize(
    ("values", "groups"),
    [
        ([100.0, 100.0, 50.0, 50.0], ([50.0, 50.0], [100.0, 100.0])),
        ([100.0, 50.0, 101.0, 49.0, 99.0], ([49.0, 50.0], [99.0, 100.0, 101.0])),
        ([0.0, 0.0, 5.0, 5.0], ([0.0, 0.0], [5.0, 5.0])),
        ([100.0, 100.0, 95.0, 95.0], None),  # less than is worth a word
        ([100.0, 50.0, 100.0, 100.0], None),
        ([100.0, 50.0, 50.0, 100.0, 100.0, 100.0], None),  # a third is named
        ([100.0, 98.0, 103.0, 91.0, 95.0, 107.0, 88.0, 111.0], None),
        ([100.0, 50.0], None),
        ([100.0, 100.0, 100.0, 100.0], None),
    ],
)
def test_two_groups(values: list[float], groups: tuple[list[float], list[float]] | None) -> None:
    assert localise.two_groups(values, 0.1) == groups


def test_noise_is_no_two_groups() -> None:
    """Of 1,000 vettings of nodes that scatter by 3 % hardly one is unclear, and of larger ones by 10 %, too."""
    chance = random.Random(7)
    for count, sigma, most in ((4, 3, 2), (5, 3, 2), (8, 3, 0), (8, 10, 10), (16, 10, 2), (64, 10, 0)):
        found = (localise.two_groups([chance.gauss(100, sigma) for _ in range(count)], 0.1) for _ in range(1000))
        assert sum(one is not None for one in found) <= most, (count, sigma)


def test_peers_in_two_groups_are_inconclusive() -> None:
    plan = Plan("p", (task(baseline="peers", better="higher"),))
    decision = verdicts.decide(plan, NODES[:4], [row(n, value=v) for n, v in zip(NODES, (100.0, 100.0, 50.0, 50.0))])  # noqa: B905
    assert {record.outcome for record in decision.records} == {INCONCLUSIVE}
    assert "the nodes are two groups, 2 nodes near 50 GB/s and 2 nodes near 100 GB/s" in decision.reasons["n1"][0]


def test_a_pass_without_a_value_is_not_compared() -> None:
    plan = Plan("p", (task(baseline="peers", better="higher"),))
    decision = verdicts.decide(plan, NODES[:5], [*(row(node, value=100.0) for node in NODES[:4]), row("n5")])
    assert decision.bad == ["n5"] and "no value to compare" in decision.reasons["n5"][0]


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


def test_history_says_that_there_is_none_yet() -> None:
    one = task(baseline="history", better="higher")
    plan, past = Plan("p", (one,)), {("n1", one.digest()): [100.0, 101.0, 99.0]}
    (judged,) = verdicts.against_history(plan, [row("n1", value=50.0)], past)
    assert judged.outcome == PASS and judged.past == 3
    decision = verdicts.decide(plan, ["n1"], [judged])
    assert decision.good == ["n1"]
    assert decision.notes == ("a: no history yet of this node (fewer than 4 runs): nothing was compared",)
    older = {("n1", one.digest()): [100.0, 101.0, 99.0, 100.0]}
    assert verdicts.decide(plan, ["n1"], [row("n1", value=99.0)], history=older).notes == ()
    both = [judged, judged._replace(node="n2", past=9)]
    assert "no history yet of 1 node" in verdicts.decide(plan, NODES[:2], both).notes[0]


def test_a_slow_loss_is_seen_against_the_first_runs(tmp_path: Path) -> None:
    """1 % a run: against the last 50 runs alone it passes for ever."""
    one = task(baseline="history", better="higher", effect=0.1)
    plan, chance = Plan("p", (one,)), random.Random(3)
    memory = cache.Cache(str(tmp_path / "c.json"), "stamp", lambda: 0.0)
    for run in range(100):
        past = {("n1", digest): values for digest, values in memory.past(plan).items()}
        now = row("n1", value=100.0 * 0.99**run * chance.gauss(1, 0.01))
        (judged,) = verdicts.against_history(plan, [now], past)
        if judged.outcome == FAIL:
            break
        memory.keep(plan, [judged])
    assert 35 < run < 60 and "of its first 20 runs" in judged.reason
    # What stays as it is stays good.
    memory = cache.Cache(str(tmp_path / "d.json"), "stamp", lambda: 0.0)
    for _ in range(200):
        past = {("n1", digest): values for digest, values in memory.past(plan).items()}
        (judged,) = verdicts.against_history(plan, [row("n1", value=chance.gauss(100, 1))], past)
        assert judged.outcome == PASS
        memory.keep(plan, [judged])


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
    assert "not judged (unclear): n3: b: its task ended" in text
    line = next(line for line in text.splitlines() if line.startswith("b "))
    assert line.split()[1:4] == ["5", "0", "1"]
    assert max(map(len, text.splitlines())) < 200


def test_the_screens_median_is_the_median() -> None:
    plan = Plan("ml", (task(),))
    text = screen.render(plan, verdicts.decide(plan, NODES[:2], rates([10.0, 20.0])), 1.0)
    line = next(line for line in text.splitlines() if line.startswith("a "))
    assert " 15 GB/s " in line and line.endswith("n1 10"), line


def test_no_line_of_the_screen_is_forged() -> None:
    plan = Plan("ml", (task(),))
    content = {**row("n1", FAIL)._asdict(), "reason": "slow\nleft out: n2: forged", "unit": "s\nleft out: n3"}
    forged = records.to_record({**content, "value": 1.0})
    assert forged is not None
    lost = {"n2": "it said\nleft out: n4: forged"}
    text = screen.render(plan, verdicts.decide(plan, NODES[:2], [forged], lost), 1.0)
    shown = [line for line in text.splitlines() if line.startswith(("left out", "bad", "not judged"))]
    assert shown == [
        "bad (unclear): n1: a: slow\\nleft out: n2: forged",
        "not judged (unclear): n2: a: it said\\nleft out: n4: forged",
        "left out: --exclude=n[1-2]",
    ]


def test_the_screen_stays_one_screen() -> None:
    nodes = [f"n{i}" for i in range(500)]
    plan = Plan("ml", (task(),))
    text = screen.render(plan, verdicts.decide(plan, nodes, []), 1.0)
    assert len(text.splitlines()) < 30
    assert "not judged (all nodes): n[0-499]: a: the node told nothing of it" in text and "--exclude" not in text


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
        {"value": 10**400},
        {"seconds": 10**400},
        {"outcome": []},
        {"peer": None},
        {"node": 1},
        {"reason": 3},
        {"details": []},
        {"extra": 1},
        {"seconds": None},
    ],
)
def test_malformed_records_are_dropped(change: dict[str, object]) -> None:
    assert records.to_record({**row("n1")._asdict(), **change}) is None


def test_a_record_survives_its_journey() -> None:
    one = row("n1", FAIL, value=3.0, why="ü")
    decoded = records.decode(records.encode_record(one).rstrip(b"\n"))
    assert decoded is not None and decoded[0] == "verdict"
    assert records.to_record(decoded[1]) == one
    long = records.encode_record(row("n1", text="x" * 100_000))
    assert len(long) < records.LINE_MAX
