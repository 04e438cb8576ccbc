"""What srun tells of its decision: the outcome as judged at the end, in bounds however many nodes there are."""

from __future__ import annotations

import json
import os
import selectors
import socket
from pathlib import Path

import pytest
from piolet.api import FAIL, PASS, Verdict
from piolet.events import cut
from piolet.events.kinds import KINDS
from piolet.node.server.vetdesk import VetDesk
from piolet.transport import wire
from piolet.vet import told, verdicts
from piolet.vet.relaunch import NodeChoice
from piolet.vet.runner import records
from piolet.vet.runner.plan import Plan, Task

from tests.support import spools

TASK = Task("speed", "cpu_gemm", "piolet.vet.evals.cpu_gemm:CpuGemm", baseline="peers", better="higher")
PLAN = Plan("site", (TASK, Task("l", "limits", "piolet.vet.evals.limits:Limits")))


def decision(count: int, slow: int = 1) -> verdicts.Decision:
    nodes = [f"n{number:05d}" for number in range(count)]
    found = []
    for task in PLAN.tasks:
        for at, node in enumerate(nodes):
            rate = 50.0 if at < slow and task is TASK else 100.0 + at % 3
            found.append(records.record(node, task.name, task.kind, Verdict(PASS, "", "rate", rate), 0.1))
    return verdicts.decide(PLAN, nodes, found)


def test_what_failed_against_its_peers_is_told_as_failed() -> None:
    """The node itself spools a pass."""
    found = decision(8)
    assert found.bad == ["n00000"]
    said = told.document(PLAN, found, 12, NodeChoice(("n00001", "n00002"), wanted=2))
    assert said["evals"] == {"speed": {FAIL: "n00000"}} and said["judges"] == {"speed": "peers"}
    assert (said["excluded"], said["chosen"], said["spares"]) == ("n00000", "n[00001-00002]", 5)
    assert said["state"] == {"good": "n[00001-00007]", "bad": "n00000"}
    assert "below the limit" in said["why"]["n00000"][0] and said["claimed"] == 12
    assert said.keys() <= KINDS["vet.decision"].body.keys()


def test_ten_thousand_nodes_fit() -> None:
    said = told.document(PLAN, decision(10_000, 500), 12, NodeChoice(()))
    assert len(said["why"]) == 20 and len(json.dumps(said)) < 12_000
    assert cut.within(said, 12_000) == said


@pytest.mark.parametrize("task", [TASK, Task("a", "b", "c", scope="pair"), Task("a", "b", "c", baseline="site")])
def test_who_judges(task: Task) -> None:
    assert told.judge_of(task) == {"peers": "peers", "site": "history"}.get(task.baseline, "pair")


def test_pioletd_takes_it_as_the_users_word(tmp_path: Path) -> None:
    spool, own = spools.spool(tmp_path / "spool", past=tmp_path)
    (tmp_path / "spool").mkdir()
    path = str(tmp_path / "vet.sock")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, listener, selectors.DefaultSelector() as selector:
        listener.bind(path)
        listener.listen(8)
        VetDesk(selector, listener, ours, own)
        for said in (told.document(PLAN, decision(8), 12, NodeChoice(())), {"uid": 0}, {"why": "x" * 50_000}):
            told.tell(path, said)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as raw:
            raw.connect(path)
            raw.send(wire.encode_decision("[" * 5000))
        for _ in range(12):
            for key, _ in selector.select(0.05):
                key.data()
        theirs.setblocking(False)
        with pytest.raises(BlockingIOError):
            theirs.recv(1)
    spool.close()
    first, second = spools.events(tmp_path / "spool", "vet.decision")
    assert (first["source"], first["uid"], first["pid"]) == ("user", os.getuid(), os.getpid())
    assert first["excluded"] == "n00000" and first["evals"] == {"speed": {"fail": "n00000"}}
    assert second["why"].startswith("xxx") and "(cut, 500" in second["why"]


def test_without_pioletd_nobody_waits(tmp_path: Path) -> None:
    assert not told.tell(str(tmp_path / "none.sock"), {"claimed": 1})
    assert not told.tell("/" + "x" * 200, {"claimed": 1})
    assert not told.tell(str(tmp_path / "none.sock"), {"why": "x" * 200_000})
    told.Telling([str(tmp_path / "none")], "X", {"why": "x" * 200_000}, {}).wait(1)
