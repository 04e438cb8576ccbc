"""A cluster with a slurmdbd: what becomes of jobs and nodes comes back as events."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator

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


def update(*words: str) -> None:
    subprocess.run(["scontrol", "update", *words], check=True, capture_output=True, timeout=30)


def test_a_drain_comes_back_with_its_reason_and_its_end(cluster: Cluster) -> None:
    began = time.time() - 5
    update("nodename=node2", "state=drain", "reason=bad | disk")

    def said() -> list[tuple[str, object]]:
        events = accounted.events_of_states(past.ask_states(began), "piolet")
        return [(event.node, event.body["state"]) for event in events if event.body.get("reason") == "bad | disk"]

    wait_until(lambda: said() == [("node2", "drain")], 30)
    time.sleep(1.1)  # slurmdbd's times are whole seconds, and a state of none is left out
    update("nodename=node2", "state=resume")
    wait_until(lambda: said() == [("node2", "drain"), ("node2", "resume")], 30)
