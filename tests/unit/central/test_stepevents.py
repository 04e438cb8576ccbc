"""Which records of the store are a step's events, and which are another user's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from piolet.central.conclusions import CLOSED, OPEN, Conclusion
from piolet.central.stepevents import CASE, STARTED, StepEvents
from piolet.central.store import wordings
from piolet.central.store.database import connect
from piolet.central.store.reader import Reader
from piolet.central.store.writer import Arrival, Writer
from piolet.events.envelope import Event
from piolet.observe.catalogue import OPEN as RUNS
from piolet.observe.catalogue import Row

BEGIN, END = 1_790_000_000.0, 1_790_001_000.0
ALICE, BOB = 1000, 1001
STEP = Row(1, "112", "0", 0, ALICE, "2026-09-21/112.0", RUNS, BEGIN, END, BEGIN)
EPOCH = "00000000000000aa"


def event(after: float, kind: str, source: str = "kernel", **more: Any) -> Event:
    """Return an event so many seconds after the step's begin."""
    return Event("alps", more.pop("node", "node1"), EPOCH, 1, BEGIN + after, kind, source, **more)


def put(store: sa.Engine, *events: Event, **more: Any) -> None:
    """Keep events, as they happened."""
    writer = Writer(store)
    by_node: dict[str, list[Event]] = {}
    for one in events:
        own = by_node.setdefault(one.node, [])
        own.append(Event(**{**vars(one), "seq": len(own) + 1}))
    for node, own in by_node.items():
        for one in own:
            (taken,) = writer.append([Arrival(node, [one], **{"received": one.time + 5, **more})])
            assert not taken.missing


def told(store: sa.Engine, nodes: tuple[str, ...] = ("node1", "node2")) -> list[dict[str, Any]]:
    """Return the rows of the step."""
    said = StepEvents(lambda: Reader(store, "alps"))(STEP, nodes, BEGIN, END)
    assert said.rows is not None and said.left == []
    return [dict(zip(said.rows, row, strict=True)) for row in zip(*said.rows.values(), strict=True)]


def test_what_happened_to_the_step_and_on_its_nodes(store: sa.Engine) -> None:
    put(
        store,
        event(-100, "vet.verdict", "user", job=112, step="7", uid=ALICE,
              body={"eval": "gemm", "state": "fail", "reason": "slow"}),
        event(-50, "gpu.xid", body={"xid": 31}),  # before it
        event(10, "node.heartbeat", "root"),
        event(20, "link.flap", node="node2", subject="port:hsn0", severity="warn", body={"state": "down"}),
        event(30, "gpu.xid", severity="fatal", subject="gpu:GPU-1", body={"xid": 79, "text": "NVRM: Xid 79"}),
        event(40, "kernel.oom", job=112, step="0", uid=ALICE, body={"scope": "cgroup"}),
        event(1100, "slurm.node_state", "site", body={"state": "down", "reason": "not responding"}),
        event(1200, "slurm.job_end", "site", job=112, uid=ALICE, body={"state": "NODE_FAIL", "nodes": "node[1-2]"}),
        event(2000, "gpu.xid", body={"xid": 48}),  # long after it
        event(50, "gpu.xid", node="node3", body={"xid": 94}),  # elsewhere
    )  # fmt: skip
    rows = told(store)
    assert [(row["kind"], row["node"], row["source"], row["severity"]) for row in rows] == [
        ("vet.verdict", "node1", "user", "error"),
        ("link.flap", "node2", "kernel", "warning"),
        ("gpu.xid", "node1", "kernel", "error"),
        ("kernel.oom", "node1", "kernel", "info"),
        ("slurm.node_state", "node1", "site", "error"),
        ("slurm.job_end", None, "site", "error"),
    ]
    assert rows[2]["text"] == "NVRM: Xid 79" and rows[2]["subject"] == "gpu:GPU-1"
    assert json.loads(rows[2]["body"])["xid"] == 79 and rows[2]["time"] == round((BEGIN + 30) * 1e9)
    assert rows[0]["text"] == "gemm: fail (slow)"


def test_each_run_of_a_requeued_job_has_its_start(store: sa.Engine) -> None:
    runs = [{"state": "REQUEUED", "nodes": "node1", "start": BEGIN - 3600.0},
            {"state": "COMPLETED", "nodes": "node[1-2]", "start": BEGIN - 2.0}]  # fmt: skip
    put(store, event(-3.0, "slurm.job_end", "user", job=112, uid=ALICE, body=runs[0]),
        event(1000, "slurm.job_end", "user", job=112, uid=ALICE, body=runs[1]),
        event(1001, "slurm.job_end", "user", job=112, uid=ALICE, body={"start": "then"}))  # fmt: skip
    rows = [row for row in told(store) if row["kind"] == STARTED]
    assert [(row["time"], row["source"], row["node"], row["text"]) for row in rows] == [
        (round((BEGIN - 3600.0) * 1e9), "site", None, "started on node1"),
        (round((BEGIN - 2.0) * 1e9), "site", None, "started on node[1-2]"),
    ]


def test_a_component_of_a_step_has_what_its_nodes_say_of_the_step(store: sa.Engine) -> None:
    put(store, event(10, "step.outcome", "user", job=112, step="0", uid=ALICE, body={"status": 3}),
        event(20, "kernel.oom", job=112, step="0+1", uid=ALICE, body={"scope": "cgroup"}),
        event(30, "kernel.oom", job=112, step="0+0", uid=ALICE, body={"scope": "cgroup"}),
        event(40, "step.outcome", "user", job=112, step="1", uid=ALICE, body={"status": 3}))  # fmt: skip
    said = StepEvents(lambda: Reader(store, "alps"))(replace(STEP, step="0+1"), ("node1",), BEGIN, END)
    assert said.rows is not None and said.rows["kind"] == ["step.outcome", "kernel.oom"]


@pytest.mark.parametrize(
    "of_another",
    [
        event(10, "kernel.oom", job=113, step="0", uid=BOB),
        event(10, "kernel.oom", uid=BOB),
        event(10, "step.outcome", "user", job=113, step="0", uid=BOB, body={"status": 1}),
        event(10, "vet.decision", "user", uid=BOB, body={"claimed": 112, "chosen": "node1"}),
        event(10, "vet.verdict", "user", job=113, uid=ALICE, body={"eval": "gemm", "state": "fail"}),
        event(10, "step.outcome", "user", job=112, step="1", uid=ALICE, body={"status": 1}),
        event(10, "step.outcome", "user", job=112, step="0", run=1, uid=ALICE, body={"status": 1}),
        event(10, "step.refused", "user", body={"reason": "a user's word of nobody's"}),
        event(10, "slurm.job_end", "user", job=112, uid=BOB, body={"state": "FAILED"}),
    ],
)
def test_what_is_of_others_is_not_in_it(store: sa.Engine, of_another: Event) -> None:
    put(store, of_another, event(20, "gpu.xid"))
    assert [row["kind"] for row in told(store)] == ["gpu.xid"]


def test_times_are_the_services(store: sa.Engine) -> None:
    """Of a node whose clock is an hour ahead."""
    ahead = event(3630, "gpu.xid")
    put(store, ahead, received=BEGIN + 40, offset=3600.0)
    assert told(store)[0]["time"] == round((BEGIN + 30) * 1e9)


def test_the_nodes_open_cases_are_its_history(store: sa.Engine) -> None:
    """Not one that was closed before, nor one that rests on what a user did."""
    put(store, event(-900, "gpu.xid", body={"xid": 79}),
        event(-800, "step.outcome", "user", job=90, step="0", uid=BOB, body={"status": 1}))  # fmt: skip

    def case(name: str, state: str, after: float, seq: int) -> Conclusion:
        return Conclusion(name, "xid", "d" * 16, "alps", "node1", "", BEGIN + after, state, "drain",
                          f"{name} is so", (("node1", EPOCH, seq),), {})  # fmt: skip

    found = [case("a" * 16, OPEN, -800, 1), case("b" * 16, OPEN, -700, 1), case("b" * 16, CLOSED, -600, 1),
             case("c" * 16, OPEN, -500, 2), case("d" * 16, OPEN, 5000, 1)]  # fmt: skip
    wordings.conclude(Writer(store), [(one, 1) for one in found], BEGIN)
    (row,) = told(store)
    assert (row["kind"], row["source"], row["severity"], row["text"]) == (CASE, "site", "warning", f"{'a' * 16} is so")


def test_a_store_that_cannot_be_read_is_told_and_tried_again(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/store.sqlite"
    engines: list[sa.Engine] = []

    def opened() -> Reader:
        engines.append(connect(url))
        return Reader(engines[-1], "alps")

    asked = StepEvents(opened)
    said = asked(STEP, ["node1"], BEGIN, END)
    assert said.rows is None and "there is no store" in said.left[0]
    engines.append(connect(url, create=True))
    put(engines[-1], event(10, "gpu.xid"))
    again = asked(STEP, ["node1"], BEGIN, END)
    assert again.rows is not None and again.rows["kind"] == ["gpu.xid"] and again.left == []
    for engine in engines:
        engine.dispose()


def test_what_is_too_much_is_left_out_and_told(store: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    from piolet.central import stepevents

    put(store, *(event(at, "link.flap") for at in range(6)), event(9, "gpu.xid", severity="fatal"))
    monkeypatch.setattr(stepevents, "ROWS_MOST", 3)
    said = StepEvents(lambda: Reader(store, "alps"))(STEP, ["node1"], BEGIN, END)
    assert said.rows is not None and said.rows["kind"] == ["link.flap", "link.flap", "gpu.xid"]
    assert said.left == ["4 of 7 are left out"]
    monkeypatch.setattr(stepevents, "NODES_MOST", 1)
    said = StepEvents(lambda: Reader(store, "alps"))(STEP, ["node1", "node2"], BEGIN, END)
    assert said.left[0] == "of 1 of 2 nodes only"
