"""A GPU that a node lacks: Slurm has it, or the other nodes do."""

from __future__ import annotations

from typing import Any

import pytest
from piolet.api import EITHER, FAIL, INCONCLUSIVE, NODE, PASS, USER, Verdict
from piolet.vet import gpucount, verdicts
from piolet.vet.runner import records
from piolet.vet.runner.plan import ENVIRONMENT, Plan, Task
from piolet.vet.runner.records import Record

PLAN = Plan("p", (Task("health", "gpu_health", "m:a"), Task("mine", "gpu", "m:b")))
NODES = ["n1", "n2", "n3", "n4"]


def row(node: str, there: Any, name: str = "mine", outcome: str = PASS, whose: str = EITHER) -> Record:
    reason = "" if outcome == PASS else "because"
    details = {} if there is None else {"gpus_there": there}
    kind = "gpu" if name == "mine" else "gpu_health"
    return records.record(node, name, kind, Verdict(outcome, reason, details=details, whose=whose), 0.1)


def judged(counts: list[Any], slurm: dict[str, int] | None = None) -> verdicts.Decision:
    nodes = NODES[: len(counts)]
    found = [row(node, count, name) for node, count in zip(nodes, counts, strict=True) for name in ("mine", "health")]
    return verdicts.decide(PLAN, nodes, found, gpus=slurm)


@pytest.mark.parametrize(
    ("counts", "slurm", "bad"),
    [
        ([2, 2, 1, 2], {}, ["n3"]),
        ([2, 1], {"n1": 2, "n2": 2}, ["n2"]),
        ([1], {"n1": 2}, ["n1"]),
        ([8, 8, 4, 4], {"n1": 8, "n2": 8, "n3": 4, "n4": 4}, []),  # two kinds of nodes
        ([8, 8, 8, 4], {"n1": 8, "n2": 8, "n3": 8, "n4": 4}, []),
        ([2, 2, 3, 2], {}, []),  # one more is no fault
        ([2, 1], {}, []),  # of two nobody can say who is right
        ([2, 2, 1, 1], {}, []),
        ([2, 2, 2, True], {}, []),
        ([2, 2, 2, None], {}, []),
        ([1, 1, 1, 1], dict.fromkeys(NODES, 2), NODES),
        ([0, 0], {"n1": 0, "n2": 0}, []),
    ],
)
def test_who_lacks_a_gpu(counts: list[Any], slurm: dict[str, int], bad: list[str]) -> None:
    decision = judged(counts, slurm)
    assert decision.bad == bad
    for node in bad:
        (reason,) = decision.reasons[node]
        assert reason.startswith("mine: ") and "GPUs are there (" in reason
        assert ("Slurm has 2" if slurm else "most nodes have 2") in reason
    assert decision.futile == ""  # hardware is the node's, even on all nodes


def test_what_was_wrong_besides_is_still_said() -> None:
    found = [row("n1", 1, outcome=FAIL)]
    (one,) = gpucount.against(PLAN, found, {"n1": 2})
    assert one.reason == "1 of 2 GPUs are there (Slurm has 2); because" and (one.value, one.limit) == (1, 2)


@pytest.mark.parametrize(("slurm", "whose"), [({"n1": 2}, NODE), ({"n1": 0}, USER), ({}, EITHER)])
def test_without_a_driver_slurm_says_whose_problem_that_is(slurm: dict[str, int], whose: str) -> None:
    (one,) = gpucount.against(PLAN, [row("n1", None, outcome=INCONCLUSIVE)], slurm)
    assert (one.outcome, one.whose) == (INCONCLUSIVE, whose)
    assert one.reason == "because" + {
        NODE: "; Slurm has 2 GPUs of this node",
        USER: "; Slurm has no GPU of this node",
    }.get(whose, "")
    (same,) = gpucount.against(PLAN, [row("n1", None, outcome=INCONCLUSIVE, whose=USER)], slurm)
    assert same.reason == "because"


def test_which_eval_counts() -> None:
    assert gpucount.wanted(PLAN) == "mine"
    assert gpucount.wanted(Plan("p", PLAN.tasks[:1])) == "health"
    assert gpucount.wanted(Plan("p", (Task("x", "gpu", "m:b", where=ENVIRONMENT), Task("y", "env", "m:c")))) == ""
