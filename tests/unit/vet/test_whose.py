"""Whose problem it is: by the kind of the reason, and by how many nodes have it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from piolet.api import EITHER, FAIL, INCONCLUSIVE, NODE, PASS, USER, Context, Inconclusive, Verdict
from piolet.vet import verdicts, whose
from piolet.vet.evals.env import Env
from piolet.vet.evals.limits import Limits
from piolet.vet.runner import child, records
from piolet.vet.runner.plan import Plan, Task
from piolet.vet.runner.records import Record

PLAN = Plan("p", (Task("a", "a", "m:a"), Task("b", "b", "m:b")))


def said(node: str, of_whom: str, name: str = "a", outcome: str = INCONCLUSIVE) -> Record:
    return records.record(node, name, name, Verdict(outcome, f"because of {node}", whose=of_whom), 0.1)


def passed(node: str, name: str = "a") -> Record:
    return records.record(node, name, name, Verdict(PASS), 0.1)


def nodes(count: int) -> list[str]:
    return [f"n{number}" for number in range(1, count + 1)]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_variable_is_the_users_whatever_the_number_of_nodes(count: int) -> None:
    found = [said(node, USER) for node in nodes(count)] + [passed(node, "b") for node in nodes(count)]
    decision = verdicts.decide(PLAN, nodes(count), found)
    assert decision.good == [] and decision.futile == "a: because of n1; that is yours or the protocol's"


@pytest.mark.parametrize("count", [1, 2, 4])
def test_hardware_is_the_nodes_even_on_all_nodes(count: int) -> None:
    found = [said(node, NODE, outcome=FAIL) for node in nodes(count)] + [passed(node, "b") for node in nodes(count)]
    decision = verdicts.decide(PLAN, nodes(count), found)
    assert decision.bad == nodes(count) and decision.futile == ""


@pytest.mark.parametrize(("count", "shared"), [(1, False), (2, False), (3, True), (4, True)])
def test_what_may_be_either_is_shared_if_all_of_at_least_three_say_it(count: int, shared: bool) -> None:
    found = [said(node, EITHER) for node in nodes(count)] + [passed(node, "b") for node in nodes(count)]
    decision = verdicts.decide(PLAN, nodes(count), found)
    assert bool(decision.futile) is shared
    assert whose.meant(decision.records)["a", EITHER] == (whose.ALL if shared else EITHER)


def test_what_one_of_four_does_not_say_is_not_shared() -> None:
    found = [said(node, EITHER) for node in nodes(3)] + [passed("n4")] + [passed(node, "b") for node in nodes(4)]
    decision = verdicts.decide(PLAN, nodes(4), found)
    assert decision.bad == ["n1", "n2", "n3"] and decision.futile == ""


def test_one_sick_node_among_four_that_all_miss_a_library() -> None:
    """The library is the user's, and would be missing on other nodes; the sick node is still named as sick."""
    found = [said(node, USER) for node in nodes(4)] + [passed(node, "b") for node in nodes(3)]
    found.append(said("n4", NODE, "b", FAIL))
    decision = verdicts.decide(PLAN, nodes(4), found)
    assert decision.futile == "a: because of n1; that is yours or the protocol's"
    assert next(one.whose for one in decision.records if (one.node, one.eval) == ("n4", "b")) == NODE
    # The same where it may be either's, and where the sick one tells nothing at all.
    found = [said(node, EITHER) for node in nodes(3)] + [passed(node, "b") for node in nodes(3)]
    assert (
        verdicts.decide(PLAN, nodes(4), found, {"n4": "its task ended"}).futile == "a: because of n1; all nodes say so"
    )


def test_what_some_nodes_passed_is_not_surely_the_users() -> None:
    """A class that one of four does not find is in a directory that this node does not have."""
    found = [passed(node) for node in nodes(3)] + [said("n4", USER)] + [passed(node, "b") for node in nodes(4)]
    decision = verdicts.decide(PLAN, nodes(4), found)
    assert decision.bad == ["n4"] and decision.futile == ""
    assert whose.meant(decision.records)["a", USER] == EITHER


def test_a_warning_of_the_users_is_no_reason_to_stop() -> None:
    plan = Plan("p", (dataclasses.replace(PLAN.tasks[0], on_inconclusive="warn"),))
    decision = verdicts.decide(plan, nodes(4), [said(node, USER) for node in nodes(4)])
    assert decision.good == nodes(4) and decision.futile == ""


def judged(tmp_path: Path, text: str, name: str = "One") -> dict[str, object]:
    (tmp_path / "their.py").write_text("from piolet.api import *\n" + text)
    task = Task("t", f"their.{name}", f"{tmp_path / 'their.py'}:{name}")
    return child.judge(task, Context("n", 1e12))


@pytest.mark.parametrize(
    ("text", "of_whom"),
    [
        ("import nothing_of_this_name\n", USER),
        ("class Other(Eval): pass\n", USER),
        ("class One(Eval):\n def check(self, c): import nothing_of_this_name\n", USER),
        ("class One(Eval):\n def check(self, c): return 3\n", USER),
        ("class One(Eval):\n def check(self, c): raise OSError(5, 'Input/output error')\n", EITHER),
        ("class One(Eval):\n def check(self, c): raise Inconclusive('no file', USER)\n", USER),
        ("class One(Eval):\n def check(self, c): raise Inconclusive('a sensor', NODE)\n", NODE),
        ("class One(Eval):\n def check(self, c): raise Inconclusive('?', 'nobody')\n", EITHER),
        ("class One(Eval):\n def check(self, c): return Verdict(FAIL, 'hot', whose=NODE)\n", NODE),
    ],
)
def test_classes_say_whose_problem_it_is(tmp_path: Path, text: str, of_whom: str) -> None:
    found = judged(tmp_path, text)
    assert found["whose"] == of_whom and found["outcome"] != PASS, found


def test_a_verdict_of_nobody_is_refused() -> None:
    with pytest.raises(ValueError, match="not 'nobody'"):
        Verdict(FAIL, "x", whose="nobody")
    content = said("n1", NODE)._asdict()
    assert records.to_record(content) == said("n1", NODE)
    assert records.to_record({**content, "whose": "nobody"}) is None
    assert records.to_record({**content, "whose": ["node"]}) is None


def test_evals_of_ours_say_it() -> None:
    context = Context("n", 1e12)
    assert Env({"PIOLET_NO_SUCH_VARIABLE": None}).check(context).whose == USER
    assert Limits(min_cpus=100_000).check(context).whose == USER
    assert Limits(min_nofile=10**9).check(context).whose == EITHER
    assert str(Inconclusive("why")) == "why"
