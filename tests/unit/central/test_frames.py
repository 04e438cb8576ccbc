"""What of a node's batch is data of a step, and what is passed over."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from piolet.base.errors import EventError, SlurmError
from piolet.central.frames import Frames, batch_of
from piolet.central.jobs import Jobs, Known
from piolet.central.store.database import StoreError
from piolet.events import batch
from piolet.events.envelope import Event, encode
from piolet.observe.spool import Line, Remark
from piolet.slurm import queue
from piolet.transport.statements import Statement

from tests.support.frames import BOOT, CLUSTER, frame, whole

EPOCH = "00000000000000a1"
START = 1_790_000_000.0


def came(events: list[Event], known: Known | None = None, ahead: float = 0.0, **said: str) -> Any:
    """Return what becomes of a batch of node1 that came at START."""
    statement = Statement("POST", "/v1/frames", CLUSTER, "node1", "0" * 64, "", START + ahead)
    return batch_of(statement, batch.pack([encode(one) for one in events]), said, START, lambda _: known)


def test_records_of_a_step_and_of_the_node() -> None:
    start = Event(CLUSTER, "node1", EPOCH, 9, START, "node.start", "root", body={"piolet": "0.1"})
    lost = Event(
        CLUSTER, "node1", EPOCH, 10, START, "spool.lost", "root",
        body={"epoch": "b" * 16, "first": 3, "last": 7, "why": "the bound of each user"},
    )  # fmt: skip
    found = came([*whole("node1", START - 60, 2, EPOCH), start, lost])
    lines = [one for one in found.records if isinstance(one, Line)]
    assert [(one.job, one.step, one.uid, one.seq) for one in lines] == [("112", "0", 1000, seq) for seq in range(1, 5)]
    assert (lines[0].began, lines[-1].ended) == (START - 60, True)
    assert [one for one in found.records if isinstance(one, Remark)] == [
        Remark(EPOCH, 9, START, "node.start", ""),
        Remark(EPOCH, 10, START, "spool.lost", "the bound of each user", "b" * 16, 3, 7),
    ]


@pytest.mark.parametrize(
    ("known", "why"),
    [
        (None, ""),
        (Known(1000, frozenset({"node1", "node2"})), ""),
        (Known(1000, frozenset()), ""),
        (Known(None, frozenset({"node1"})), ""),
        (Known(1001, frozenset({"node1"})), "the node says that job 112 is of uid 1000, and Slurm says another"),
        (Known(1000, frozenset({"node2"})), "Slurm does not have job 112 on this node"),
    ],
)
def test_slurms_word_is_above_a_nodes(known: Known | None, why: str) -> None:
    (found,) = came([frame("node1", 1, START, 0, EPOCH)], known).records
    assert found.why == why if isinstance(found, Remark) else not why


def test_clocks_are_told() -> None:
    found = came([frame("node1", 1, START, 0, EPOCH)], ahead=3600.0, up="86412.5", boot=BOOT)
    assert (found.ahead, found.booted, found.boot) == (3600, START - 86412.5, BOOT)
    for said in ({"up": "nan", "boot": BOOT}, {"up": "-1", "boot": BOOT}, {"up": "soon", "boot": BOOT}, {"up": "5"},
                 {"up": "5", "boot": "../../etc"}, {"up": "inf", "boot": BOOT}):  # fmt: skip
        assert came([], None, 0.0, **said).booted is None


@pytest.mark.parametrize("more", [{"job": None}, {"job": None, "sluid": "../x"}, {"step": ""}, {"uid": None}])
def test_records_of_no_step_are_passed_over(more: dict[str, Any]) -> None:
    (found,) = came([frame("node1", 1, START, 0, EPOCH, **more)]).records
    assert isinstance(found, Remark) and found.kind == "refused"


def test_records_of_others_are_refused_as_a_whole() -> None:
    with pytest.raises(EventError, match="line 2: the record is of node node2"):
        came([frame("node1", 1, START, 0, EPOCH), frame("node2", 2, START, 0, EPOCH)])
    with pytest.raises(EventError, match="EPOCH:SEQ"):
        came([], gone="nonsense")


def test_nothing_is_taken_with_too_little_room(tmp_path: Path) -> None:
    keeper = Frames(tmp_path / "steps", 1 << 40, lambda: START)
    keeper.start()
    future: Future[Any] = keeper.add(came([frame("node1", 1, START, 0, EPOCH)]))
    with pytest.raises(StoreError, match="MiB are free where"):
        future.result(10)
    assert keeper.call(lambda known: known.have("node1")).result(10) == {}
    keeper.stop()


def test_jobs_that_slurm_does_not_tell_are_not_known() -> None:
    answers: list[Any] = [
        {"112": queue.RunningJob(1000, ("node1",), {"name": "train"})}, SlurmError("squeue cannot tell"),
    ]  # fmt: skip
    noted: list[Any] = []

    def ask() -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    jobs = Jobs(noted.append, ask)
    jobs.look()
    assert jobs("112") == Known(1000, frozenset({"node1"})) and noted == [{"112": {"name": "train"}}]
    jobs.look()
    assert jobs("112") is None
