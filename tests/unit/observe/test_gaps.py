"""Every gap has a reason: what the node, its boots and Slurm tell of it."""

from __future__ import annotations

from typing import Any

import pytest
from piolet.observe import gaps
from piolet.observe.gathering import Facts, Run

EPOCH = "00000000000000a1"
FULL = "the node did not write them: the disk"


def facts(*runs: tuple[float, float], boots: str = "aaaa", epochs: str = "", ended: float | None = None) -> Facts:
    """Return what is known of a node whose samples (of 10 s, with numbers from 1 on) have gaps between these runs."""
    made = Facts(nodes={"n": {"interval": 10}})
    first = 1
    for number, (start, end) in enumerate(runs):
        last = first + round((end - start) / 10) - 1
        epoch = (epochs or EPOCH[:1] * len(runs))[number] * 16
        made.runs.setdefault("n", []).append(Run(epoch, boots[number], start, end, first, last))
        first = last + 1 if not epochs else 1
    if ended is not None:
        made.ended["n"] = ended
    return made


def found(known: Facts, remarks: list[Any] | None = None, end: float = 100.0, state: str = "") -> list[Any]:
    """Return the gaps of a step from 0 on."""
    return [(gap.start, gap.end, gap.reason) for gap in gaps.gaps(known, ["n"], 0.0, end, {"n": remarks or []}, state)]


def test_no_gap() -> None:
    assert found(facts((0, 100), ended=100.0)) == []
    assert gaps.coverage(facts((0, 100), ended=100.0), ["n"], 0.0, 100.0) == 1.0


@pytest.mark.parametrize(
    ("known", "remarks", "reason"),
    [
        (facts((0, 30), (60, 100), boots="ab"), [], "the node started again"),
        (facts((0, 30), (60, 100)), [("x", 1, 1, 59.5, "node.start", "")], "the sampler was restarted"),
        (facts((0, 30), (60, 100)), [("x", 1, 1, 70.0, "node.start", "")], gaps.UNKNOWN),  # of later: not of this one
        (facts((0, 30), (60, 100)), [("x", 1, 1, 62.0, "spool.dropped", "the disk")], FULL),
        (facts((0, 30), (60, 100)), [("x", 1, 1, 300.0, "spool.dropped", "the disk")], FULL),
        (facts((0, 30), (60, 100), epochs="ab"), [], "the node's journal was lost and made anew"),
        (facts((0, 30), (60, 100)), [], gaps.UNKNOWN),
    ],
)  # fmt: skip
def test_a_gap_in_between(known: Facts, remarks: list[Any], reason: str) -> None:
    known.ended["n"] = 100.0
    assert found(known, remarks) == [(30, 60, reason)]
    assert gaps.coverage(known, ["n"], 0.0, 100.0) == pytest.approx(0.7)


def test_numbers_say_what_was_lost() -> None:
    known = facts((0, 30), (60, 100), ended=100.0)
    epoch = known.runs["n"][0].epoch
    known.runs["n"][1].first = 7
    lost = [(epoch, 4, 6, 5000.0, "spool.lost", "the bound of each user")]
    assert found(known, lost) == [(30, 60, "the node removed them before they were taken: the bound of each user")]
    assert found(known, [(epoch, 4, 6, 50.0, "refused", "Slurm does not have job 1 on this node")])[0][2].startswith(
        "Slurm"
    )
    both = [*lost, (epoch, 1, 1, 61.0, "spool.dropped", "the disk")]
    assert found(known, both)[0][2].endswith("each user; the node did not write them: the disk")
    other = [("b" * 16, 4, 6, 5000.0, "spool.lost", "the bound of each user")]
    assert found(known, other)[0][2] == gaps.UNKNOWN  # of another stream


def test_before_the_first_and_after_the_last_sample() -> None:
    assert found(facts((10, 100), ended=100.0)) == [(0, 10, "the sampler had not found the step yet")]
    start = [("x", 1, 1, 39.0, "node.start", "")]
    assert found(facts((40, 100), ended=100.0), start) == [(0, 40, "the sampler began later than the step")]
    assert found(facts((0, 50))) == [(50, 100, "nothing more came of this node")]
    assert found(facts((0, 50)), state="NODE_FAIL")[0][2] == "nothing more came of this node: Slurm says NODE_FAIL"
    assert found(facts((0, 90), ended=98.0)) == [(90, 98, "the step ended between two samples")]
    assert found(facts((0, 50), ended=60.0)) == [(50, 60.0, "the step ended between two samples")]


def test_nothing_came_at_all() -> None:
    assert found(Facts()) == [(0, 100, "nothing came of this node")]
    assert found(Facts(ended={"n": 3.0})) == [(0, 3, "the step was over before a sample could be taken")]
    assert gaps.coverage(Facts(), ["n"], 0.0, 100.0) == 0.0
