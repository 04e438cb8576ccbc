"""The lines for people: one for each reason, the value first, with whose problem it is, and what to paste."""

from __future__ import annotations

import dataclasses

import pytest
from piolet.api import EITHER, FAIL, INCONCLUSIVE, NODE, PASS, USER, Verdict, at_least
from piolet.vet import problems, verdicts
from piolet.vet.runner import records
from piolet.vet.runner.plan import Plan, Task
from piolet.vet.runner.records import Record

NODES = [f"node{number:02}" for number in range(1, 13)]
PLAN = Plan("p", (Task("disk", "d", "m:d"), Task("gpu", "g", "m:g")))


def row(node: str, name: str, verdict: Verdict = Verdict(PASS)) -> Record:  # noqa: B008 - it is frozen
    return records.record(node, name, name, verdict, 0.1)


def lines(wrong: dict[tuple[str, str], Verdict], lost: dict[str, str] | None = None, plan: Plan = PLAN) -> list[str]:
    found = [row(node, name, wrong.get((node, name), Verdict(PASS))) for node in NODES for name in ("disk", "gpu")]
    found = [record for record in found if record.node not in (lost or {})]
    return problems.lines(plan, verdicts.decide(plan, NODES, found, lost))


def test_nodes_with_one_reason_stand_on_one_line() -> None:
    slow = {
        (node, "disk"): at_least("write", rate, 2.0, "GB/s")
        for node, rate in zip(NODES[2:5], (1.5, 0.25, 1.0), strict=True)
    }
    assert lines(slow) == [
        "bad (unclear): node[03-05]: disk: 0.25 to 1.5 GB/s is below the limit of 2 GB/s (write)",
        "left out: --exclude=node[03-05]",
    ]
    hot = {
        (node, "gpu"): Verdict(FAIL, f"GPU {at} is at {90 + at} degC", whose=NODE) for at, node in enumerate(NODES[:2])
    }
    assert lines(hot)[0] == "bad (node's): node[01-02]: gpu: GPU 0 is at 90 degC (the others likewise)"


def test_what_could_not_be_judged_stands_apart_with_whose_it_is() -> None:
    wrong = {
        ("node01", "gpu"): Verdict(FAIL, "XID 79", whose=NODE),
        ("node03", "gpu"): Verdict(INCONCLUSIVE, "no answer", whose=EITHER),
        ("node04", "gpu"): Verdict(PASS, "GPU 0: memory rows are remapped: 1"),
        **{(node, "disk"): Verdict(INCONCLUSIVE, "no module 'x'", whose=USER) for node in NODES},
    }
    assert lines(wrong) == [
        "bad (node's): node01: gpu: XID 79",
        "not judged (unclear): node03: gpu: no answer",
        "not judged (yours): node[01-12]: disk: no module 'x'",
        "left out: --exclude=node[01,03]",
        "warning: node04: gpu: GPU 0: memory rows are remapped: 1",
    ]


def test_a_node_that_told_nothing_has_one_line() -> None:
    assert lines({}, {"node07": "its task ended", "node09": "its task ended"}) == [
        "not judged (unclear): node[07,09]: its task ended",
        "left out: --exclude=node[07,09]",
    ]


def test_a_value_stands_beside_the_nodes_own_past() -> None:
    task = dataclasses.replace(PLAN.tasks[0], better="higher")
    past = {("node01", task.digest()): [3.0, 3.2, 3.1]}
    found = [row("node01", "disk", at_least("write", 1.5, 2.0, "GB/s"))]
    plan = Plan("p", (task,))
    assert problems.lines(plan, verdicts.decide(plan, ["node01"], found, None, past))[0] == (
        "bad (unclear): node01: disk: 1.5 GB/s is below the limit of 2 GB/s (write); 3.1 GB/s is its median of 3 runs"
    )


def test_a_long_list_of_nodes_and_of_reasons_is_cut() -> None:
    odd = [f"n{number}" for number in range(1, 200, 2)]
    text = problems.some(odd)
    assert text.startswith("100 nodes (n[1,3,5,") and text.endswith("] …)") and len(text) < 90
    plan = Plan("p", (Task("a", "a", "m:a"),))
    words = [chr(ord("a") + at // 26) + chr(ord("a") + at % 26) for at in range(60)]
    found = [row(f"n{at}", "a", Verdict(FAIL, f"reason {word}", whose=NODE)) for at, word in enumerate(words)]
    shown = problems.lines(plan, verdicts.decide(plan, [record.node for record in found], found))
    assert len(shown) == 22 and shown[20] == "bad: 40 more reasons on 40 nodes, see the result file"
    assert shown[21] == "left out: --exclude=n[0-59]"


@pytest.mark.parametrize(
    ("total", "good", "wanted", "text"),
    [
        (66, 66, 64, ""),
        (66, 65, 64, "spares: 1 of 2 left; with so many bad ones, 64 good nodes take -N 65"),
        (66, 64, 64, "spares: 0 of 2 left; with so many bad ones, 64 good nodes take -N 66"),
        (66, 63, 64, "spares: 0 of 2 left, 1 good node short; with so many bad ones, 64 good nodes take -N 68"),
        (4, 3, 4, "spares: there were none, 1 good node short; with so many bad ones, 4 good nodes take -N 6"),
        (4, 0, 4, ""),
    ],
)
def test_how_many_to_ask_for(total: int, good: int, wanted: int, text: str) -> None:
    assert problems.spares(total, good, wanted) == text
