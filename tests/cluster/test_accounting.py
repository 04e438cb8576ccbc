"""A cluster with a slurmdbd: what becomes of jobs and nodes comes back as events."""

from __future__ import annotations

import json
import pwd
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from piolet.central import accounted
from piolet.slurm import past

from tests.cluster.support import Cluster, running
from tests.support.waiting import wait_until


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with running("test-accounting", "--nodes", "2", "--accounting") as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def of_this_cluster(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CONF", str(cluster.layout.slurm_conf))


def test_jobs_come_back_with_their_end(cluster: Cluster) -> None:
    """What failed, what was cancelled, what went through, a task of an array; asked twice, they have the same keys."""
    began = time.time() - 5
    assert cluster.run("alice", "srun", "-N2", "false").status == 1
    cluster.run("bob", "srun", "true").good()
    cluster.run("alice", "sbatch", "--wait", "--array=3", "-o", "/dev/null", "--wrap", "exit 7")

    def found() -> list[past.EndedJob]:
        return past.ask_jobs(began, time.time() + 5)

    wait_until(lambda: sorted(job.state for job in found()) == ["COMPLETED", "FAILED", "FAILED"], 60)
    jobs = found()
    failed, array = (next(job for job in jobs if job.status == status) for status in (1, 7))
    assert failed.nodes == ("node1", "node2") and failed.array == "" and failed.start is not None
    assert array.array.endswith("_3") and array.state == "FAILED"
    keys = [event.key for event in accounted.events_of_jobs(jobs, "piolet")]
    assert keys == [event.key for event in accounted.events_of_jobs(found(), "piolet")]


def test_whose_scancel_it_was_and_that_another_signal_was_none(cluster: Cluster) -> None:
    began = time.time() - 5

    def start() -> str:
        said = cluster.run("alice", "sbatch", "--parsable", "-N1", "-o", "/dev/null", "--wrap", "exec sleep 300").good()
        job = said.strip()
        wait_until(lambda: "RUNNING" in _slurm("squeue", "-h", "-j", job, "-o", "%T"), 60, "the job")
        return job

    def ended(job: str) -> past.EndedJob | None:
        return next((one for one in past.ask_jobs(began, time.time() + 5) if one.job == int(job)), None)

    by_root, by_alice, killed = start(), start(), start()
    _slurm("scancel", by_root)
    cluster.run("alice", "scancel", by_alice).good()
    _slurm("scancel", "--signal=KILL", "--batch", killed)  # as from elsewhere: Slurm does not write down whose it was
    wait_until(lambda: all(ended(job) for job in (by_root, by_alice, killed)), 90, "the ends of jobs")
    found = [ended(job) for job in (by_root, by_alice, killed)]
    assert [(one.state, one.by) for one in found if one] == [
        ("CANCELLED", 0), ("CANCELLED", pwd.getpwnam("alice").pw_uid), ("FAILED", None),
    ]  # fmt: skip


def _slurm(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout


RULES = """
[taken-out]
about = "somebody took the node out twice"
source = "a test"
date = 2026-11-29
events = ["slurm.node_state"]
window = "7d"
when = "count >= 1"
then = "ticket"
recovery = ["repair"]
"""


def test_replay_over_what_slurmdbd_has_and_over_what_was_exported(cluster: Cluster, tmp_path: Path) -> None:
    """The commands of docs/rules.md, as a site types them; both ways conclude the same, byte for byte."""
    cluster.run("bob", "srun", "-N1", "false")
    # Not "down": slurmctld takes a node that answers back at once, perhaps within the second, and then tells nothing.
    update("nodename=node1", "state=fail", "reason=replay | of this")
    (tmp_path / "rules.toml").write_text(RULES)
    guide = (Path(__file__).parents[2] / "docs" / "rules.md").read_text()
    exports = [line.removeprefix("$ ") for line in guide.splitlines() if line.startswith("$ sacct")]
    assert [line.rpartition(" > ")[2] for line in exports] == ["jobs", "nodes"]
    piolet = [str(cluster.layout.bin / "piolet"), "central", "replay", "rules.toml"]

    def replayed(*words: str) -> str:
        return subprocess.run(
            [*piolet, *words], check=True, capture_output=True, text=True, timeout=120, cwd=tmp_path
        ).stdout  # fmt: skip

    def concluded() -> list[dict[str, Any]]:
        return [json.loads(line) for line in replayed("--slurm", "--conclusions").splitlines()]

    wait_until(lambda: any(one["node"] == "node1" for one in concluded()), 60, "the state in slurmdbd")
    update("nodename=node1", "state=resume")

    def exported() -> bool:
        for line in exports:
            subprocess.run(["sh", "-c", line], check=True, timeout=60, cwd=tmp_path)
        failed = next((row for row in (tmp_path / "nodes").read_text().splitlines() if "replay" in row), "Unknown")
        return "|FAILED|" in (tmp_path / "jobs").read_text() and "Unknown" not in failed

    wait_until(exported, 60, "the job and the end of the state in slurmdbd")
    files = ("--sacct", "jobs", "--sacctmgr", "nodes")
    assert replayed(*files, "--conclusions") == replayed("--slurm", "--conclusions") != ""
    ours = subprocess.run(
        [*piolet[:-1], "--slurm"], check=True, capture_output=True, text=True, timeout=120, cwd=tmp_path
    ).stdout  # fmt: skip
    assert " records of " in ours and "1 failure of nodes" in ours


def update(*words: str) -> None:
    subprocess.run(["scontrol", "update", *words], check=True, capture_output=True, timeout=30)


def test_a_drain_comes_back_with_its_reason_and_its_end(cluster: Cluster) -> None:
    began = time.time() - 5
    reason = "bad | disk of a health check"
    update("nodename=node2", "state=drain", "reason=bad | disk\nof a health check")

    def said() -> list[tuple[str, object]]:
        events = accounted.events_of_states(past.ask_states(began), "piolet")
        return [(event.node, event.body["state"]) for event in events if event.body.get("reason") == reason]

    wait_until(lambda: said() == [("node2", "drain")], 30)
    time.sleep(1.1)  # slurmdbd's times are whole seconds, and a state of none is left out
    update("nodename=node2", "state=resume")
    wait_until(lambda: said() == [("node2", "drain"), ("node2", "resume")], 30)


def test_a_job_in_one_place(cluster: Cluster) -> None:
    """Its owner sees it, another user does not; tasks of an array are told apart; nothing is left where it ran."""
    room = cluster.room("alice")
    text = "srun --vet=p.yaml sh -c 'kill -SEGV $$'\n"
    cluster.write("alice", room / "p.yaml", "name: before\nevals:\n- type: limits\n")
    path = cluster.script("alice", text)
    words = ["--parsable", "--wait", "--array=1-2", "-o", "/dev/null", str(path)]
    array = cluster.run("alice", "sbatch", *words, cwd=room).out.strip()
    wait_until(lambda: cluster.run("alice", "piolet", "job", array).status == 0, 60, "the job in slurmdbd, as alice's")
    done = cluster.run("alice", "piolet", "job", array).good()
    assert f"{array}_1" in done and f"{array}_2" in done
    wait_until(lambda: "SIGSEGV" in cluster.run("alice", "piolet", "why", f"{array}_2").out, 60)
    job = json.loads(cluster.run("alice", "piolet", "job", f"{array}_2", "--json").good())
    assert job["job"] == f"{array}_2" and job["now"]["state"] == "FAILED" and job["user"] == "alice"
    assert job["why"][0]["kind"] == "signal" and job["vettings"][0]["protocol"] == "before"
    assert [path.name for path in room.iterdir() if not path.name.startswith("core")] == ["p.yaml"]
    other = cluster.run("bob", "piolet", "job", f"{array}_2")
    assert other.status == 2 and f"job {array}_2 is alice's, not yours" in other.err and other.out == ""
    assert f"{array}_2" in cluster.run("alice", "piolet", "history").good()
    assert cluster.run("bob", "piolet", "history", "--user", "alice").status == 2
