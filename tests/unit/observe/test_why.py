"""Why a job ended: each reason by a job that has it, and in the right order where several have it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from piolet.observe import happened, why
from piolet.observe.job import VERSION, Finding, Happened, Job, Run, Step, Vetting

NODES = ("n1", "n2")


def job(state: str, *steps: Step, status: int = 0, **more: Any) -> Job:
    run = Run(0, state, status, 0, more.pop("by", ""), NODES, 1000.0, 1600.0, steps)
    fields = {
        "version": VERSION, "job": "112", "number": 112, "step": "", "name": "train", "user": "alice", "uid": 1500,
        "account": "", "partition": "main", "cluster": "alps", "command": "", "gpus": 8, "submit": 900.0,
        "limit": 600.0, "waits_for": "", "now": run,
    }  # fmt: skip
    return Job(**{**fields, **more})


def step(status: int = 0, signal: int = 0, state: str = "FAILED", name: str = "0") -> Step:
    return Step(name, "python3", state, status, signal, NODES, 1001.0, 1500.0)


def event(kind: str, source: str = "kernel", severity: str = "fatal", step: str = "", **body: Any) -> Happened:
    return Happened(1400.0, "n2", kind, source, severity, step, "", str(body.get("text", "")), body)


def finding(confidence: float | None) -> Finding:
    return Finding("112.0", "straggler 1", "n2", None, 1000.0, 1500.0, confidence, "n2 is slow", "leave it out")


XID_48 = event("gpu.xid", xid=48, text="NVRM: Xid 48")
XID_31 = event("gpu.xid", severity="info", xid=31, text="NVRM: Xid 31")
XID_45 = event("gpu.xid", severity="info", xid=45, text="NVRM: Xid 45")
MCE = event("memory.ecc", text="mce: Uncorrected hardware memory error in user-access at 3f5a6c0")
DOWN = event("slurm.node_state", "site", "", state="down", text="Not responding")
OOM = event("kernel.oom", step="0", scope="cgroup", text="killed process python3")
REFUSED = event("step.refused", "user", "", step="0", text="there is no image x")


@pytest.mark.parametrize(
    ("what", "kind", "sentence"),
    [
        (job("COMPLETED", step(state="COMPLETED")), "ended_well", "ended well"),
        (job("RUNNING"), "runs", "it runs on n[1-2]"),
        (job("PENDING", waits_for="Resources"), "waits", "for nodes that others have"),
        (job("PENDING", waits_for="JobHeldUser"), "waits", "held"),
        (job("NODE_FAIL", events=(DOWN,)), "node_failure", "n2 failed while it ran: Not responding"),
        (job("NODE_FAIL"), "node_failure", "a node failed"),
        (job("FAILED", step(1), events=(XID_48,)), "gpu_error", "n2 had a fault of the hardware while it ran: XID 48"),
        (job("FAILED", step(1), events=(XID_31,)), "gpu_error", "a GPU refused what the program did: XID 31"),
        (
            job("FAILED", step(1), events=(MCE,)),
            "node_failure",
            "n2 had a fault of the hardware while it ran: mce: Unc",
        ),
        (job("TIMEOUT", step(0, 9, "CANCELLED"), events=(XID_45,)), "time_limit", "its time limit of 10 min"),
        (job("OUT_OF_MEMORY", step(0, 9, "OUT_OF_MEMORY"), events=(OOM,)), "out_of_memory", "than it had on n2"),
        (job("FAILED", step(137), events=(OOM,)), "out_of_memory", "the kernel ended a process"),
        (job("TIMEOUT", step(0, 15, "CANCELLED")), "time_limit", "its time limit of 10 min"),
        (job("FAILED", step(0, 15, "TIMEOUT")), "time_limit", "step 0 reached its time limit"),
        (job("FAILED", status=1, events=(REFUSED,)), "container", "step 0 could not be started: there is no image x"),
        (job("FAILED", step(1), findings=(finding(0.99),)), "finding", "n2 is slow"),
        (job("CANCELLED", step(0, 15, "CANCELLED"), by="1500"), "cancelled", "by alice"),
        (job("CANCELLED", step(0, 15, "CANCELLED"), by="0"), "cancelled", "by root"),
        (job("FAILED", step(0, 11)), "signal", "crashed (SIGSEGV)"),
        (job("FAILED", step(139)), "signal", "crashed (SIGSEGV)"),
        (job("FAILED", step(11, name="batch"), step(0, 11, "CANCELLED")), "signal", "step 0 crashed (SIGSEGV)"),
        (job("PENDING", waits_for="PartitionNodeLimit"), "waits", "cannot start as it is"),
        (job("FAILED", step(0, 9)), "signal", "was ended by a signal (SIGKILL)"),
        (job("FAILED", step(2)), "program", "the program of step 0 ended with status 2"),
        (job("FAILED", step(127)), "program", "there is no such program"),
        (job("FAILED", step(3, name="batch")), "program", "the batch script ended with status 3"),
        (job("FAILED", status=4), "program", "the batch script ended with status 4"),
        (job("COMPLETED", step(5)), "program", "status 5"),
        (job("FAILED"), "unknown", "nobody says why"),
    ],
)
def test_each_reason(what: Job, kind: str, sentence: str) -> None:
    first = why.reasons(what)[0]
    assert (first.kind, sentence in first.sentence) == (kind, True), first
    if kind not in ("ended_well", "runs", "waits"):
        assert first.evidence and all(first.evidence)


def test_what_a_node_says_comes_before_what_it_led_to() -> None:
    """A GPU that is lost ends programs by signals, and these by statuses."""
    everything = job(
        "NODE_FAIL", step(0, 9), step(1, name="batch"), events=(XID_48, DOWN, OOM, REFUSED), findings=(finding(0.95),)
    )
    kinds = [one.kind for one in why.reasons(everything)]
    assert kinds == ["node_failure", "gpu_error", "out_of_memory", "container", "finding", "signal", "program"]


def test_what_a_user_says_is_no_fault_of_a_node() -> None:
    """A record that a user's process made names no node to leave out."""
    forged = replace(XID_48, source="user")
    assert [one.kind for one in why.reasons(job("FAILED", step(1), events=(forged,)))] == ["program"]


def test_faults_that_mean_nothing_are_left_out() -> None:
    corrected = event("memory.ecc", severity="warn", corrected=3, uncorrected=0)
    info = event("gpu.xid", severity="info", xid=92)
    assert [one.kind for one in why.reasons(job("FAILED", step(1), events=(corrected, info)))] == ["program"]
    assert why.reasons(job("FAILED", step(1), findings=(finding(0.5),)))[0].kind == "program"
    assert why.reasons(job("FAILED", step(1), findings=(finding(None),)))[0].kind == "program"


def test_a_vetting_that_let_nothing_start() -> None:
    vetted = Vetting("before", 1000.0, 1.0, ("n1",), (), {"n2": ("its clocks are lowered",)}, (), "too few nodes", "")
    first = why.reasons(job("FAILED", status=3, vettings=(vetted,)))[0]
    assert (first.kind, first.evidence) == ("vetting", ("n2: its clocks are lowered",))
    assert "--exclude=n2" in first.advice
    started = replace(vetted, abort="", chosen=("n1",))
    assert why.reasons(job("FAILED", status=3, vettings=(started,)))[0].kind == "program"


def test_a_step_alone_and_runs_before() -> None:
    two = job("FAILED", step(1, name="0"), step(0, 11, name="1"), step="1")
    assert [one.kind for one in why.reasons(two)] == ["signal"]
    before = Run(0, "NODE_FAIL", 0, 0, "", ("n7",), 1.0, 2.0)
    again = replace(job("COMPLETED", step(state="COMPLETED")), earlier=(before,))
    assert [one.kind for one in why.reasons(again)] == ["ended_well", "requeued"]
    assert "NODE_FAIL" in why.reasons(again)[1].sentence


def test_components_of_a_step_have_their_own_ends() -> None:
    """A node says 0 of them, and is of one of them alone."""
    parts = [replace(step(number, name=f"0+{at}"), nodes=(f"n{at + 1}",)) for at, number in ((0, 0), (1, 3))]
    ends = [replace(event("step.outcome", "user", "", step="0", status=number, text=f"task 0: status {number}"),
                    node=f"n{at}") for at, number in ((1, 7), (2, 3))]  # fmt: skip
    (first, *_) = why.reasons(job("FAILED", *parts, events=tuple(ends)))
    assert first.kind == "program" and first.evidence[1:] == ("n2: step.outcome: task 0: status 3",)
    assert happened._is_of(ends[1], job("FAILED", *parts, step="0+1"))
    assert not happened._is_of(ends[0], job("FAILED", *parts, step="0+1")), "of the other component's node"
    assert not happened._is_of(ends[1], job("FAILED", *parts, step="1"))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "?"), (45, "45 s"), (600, "10 min"), (12000, "3 h 20 min"), (7200, "2 h"), (187200, "2 d 4 h"), (0, "0 s")],
)
def test_spans(seconds: float | None, text: str) -> None:
    assert why.span(seconds) == text
