"""A cluster with a central service: what users read at the end of a step that failed, and what it concludes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from piolet.events.envelope import Event, encode
from piolet.site.config import load as load_config

from tests.cluster.support import Cluster, Result, running
from tests.support.central import SEND
from tests.support.munge import munged
from tests.support.waiting import wait_until
from tools import demo_central
from tools.cluster import processes
from tools.cluster.accounts import numbers
from tools.cluster.state import load

SICK, WELL = demo_central.SICK, ("node1", "node2")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with running("test-central", "--nodes", "3", "--accounting", "--central") as cluster:
        yield cluster


def fail(cluster: Cluster, user: str, node: str, status: int) -> Result:
    return cluster.run(user, "srun", f"--nodelist={node}", "sh", "-c", f"exit {status}")


def line(result: Result) -> str:
    """Return what the service has said at srun's end."""
    return "".join(one for one in result.err.splitlines() if one.startswith("piolet: "))


def staff(cluster: Cluster, *words: str) -> str:
    return subprocess.run(
        [cluster.layout.bin / "piolet", "central", *words], check=True, capture_output=True, text=True, timeout=60,
        env={**os.environ, "SLURM_CONF": str(cluster.layout.slurm_conf)},
    ).stdout  # fmt: skip


def test_a_step_that_ends_well_says_nothing(cluster: Cluster) -> None:
    done = cluster.run("alice", "srun", "-N3", "true")
    assert (done.status, done.err) == (0, "")


def test_a_node_on_which_steps_of_several_users_fail_is_named(cluster: Cluster) -> None:
    """The status is the step's own, and what one user alone did says nothing of a node."""
    for _ in range(2):
        assert line(fail(cluster, "alice", SICK, 3)) == ""
    told = []

    def bobs() -> bool:
        done = fail(cluster, "bob", SICK, 4)
        assert done.status == 4
        told.append(line(done))
        return bool(told[-1])

    # His own step before this one counts as soon as its node has said how it ended.
    wait_until(bobs, 30, "a line at the end of srun")
    assert told[-1].startswith(f"piolet: {SICK} failed ") and told[-1].endswith(f"ask for --exclude={SICK}")
    assert "2 users" in told[-1]
    assert f"{SICK}\n" in cluster.run("carol", "piolet", "node", SICK).good()


@pytest.mark.parametrize("place", [0, 1, 2])
def test_whichever_component_of_a_heterogeneous_job_failed(cluster: Cluster, place: int) -> None:
    """Slurm tells srun's plugin of one of them alone."""
    nodes = [*WELL]
    nodes.insert(place, SICK)
    ends = {SICK: ["sh", "-c", "exit 6"]}
    words = [[f"--nodelist={node}", "-N1", "-n1", *ends.get(node, ["true"])] for node in nodes]
    told: list[str] = []

    def carols() -> bool:
        done = cluster.run("carol", "srun", *words[0], ":", *words[1], ":", *words[2], timeout=60)
        assert done.status == 6
        told.append(line(done))
        return bool(told[-1])

    wait_until(carols, 30, "a line at the end of srun")
    assert told[-1].startswith(f"piolet: {SICK} failed ") and told[-1].endswith(f"ask for --exclude={SICK}")


def test_a_program_that_fails_everywhere_blames_no_node(cluster: Cluster) -> None:
    """Its jobs end well: jobs of three users that failed on one node would be a case."""

    def program(node: str) -> Result:
        return cluster.run("carol", "salloc", f"--nodelist={node}", "sh", "-c", "srun sh -c 'exit 7'; true")

    for node in WELL:
        program(node)
    told: list[str] = []

    def carols() -> bool:
        told.append(line(program(SICK)))
        return "probably the program" in told[-1]

    wait_until(carols, 30, "the line that it is the program")
    for node in WELL:
        assert "open:" not in cluster.run("carol", "piolet", "node", node).out


def test_a_lost_gpu_makes_a_case_and_users_doings_none(cluster: Cluster) -> None:
    assert staff(cluster, "offenders") == "no node has an open case\n"
    with demo_central.kernel_log(cluster.layout) as log:
        os.write(log, f"4,1,{int(time.monotonic() * 1e6)},-;{demo_central.FELL_OFF}\n".encode())
        wait_until(lambda: SICK in staff(cluster, "offenders"), 30, "the case")
    said = staff(cluster, "offenders")
    assert not [node for node in WELL if node in said]
    case = staff(cluster, "explain", said.split()[0])
    assert "rule    gpu-lost" in case and "gpu.lost  kernel" in case and "in shadow nothing is done" in case
    assert "--exclude=" in line(fail(cluster, "alice", SICK, 1))
    state = subprocess.run(
        ["sinfo", "-h", "-n", SICK, "-o", "%T"], check=True, capture_output=True, text=True, timeout=30,
        env={**os.environ, "SLURM_CONF": str(cluster.layout.slurm_conf)},
    ).stdout  # fmt: skip
    assert state in ("idle\n", "mixed\n", "completing\n")  # in shadow: it is not drained


def test_accounting_is_among_the_records(cluster: Cluster) -> None:
    """Jobs that ended and states of nodes come from slurmdbd; a node that was drained by somebody is no case."""

    def states() -> list[str]:
        said = json.loads(staff(cluster, "node", WELL[0], "--json"))["records"]
        return [one["body"]["state"] for one in said if one["kind"] == "slurm.node_state"][::-1]

    def jobs() -> int:
        counts = json.loads(staff(cluster, "node", WELL[0], "--json"))["counts"]
        return int(counts.get("slurm.job_end", {}).get("records", 0))

    def update(*words: str) -> None:
        command = ["scontrol", "update", f"NodeName={WELL[0]}", *words]
        conf = {**os.environ, "SLURM_CONF": str(cluster.layout.slurm_conf)}
        subprocess.run(command, check=True, capture_output=True, timeout=30, env=conf)

    wait_until(lambda: jobs() > 0, 60, "a job's end")
    update("State=DRAIN", "Reason=upgrade")
    wait_until(lambda: states()[-1:] == ["drain"], 60, "the drain")
    update("State=RESUME")
    wait_until(lambda: states()[-2:] == ["drain", "resume"], 60, "the end of the drain")
    assert WELL[0] not in staff(cluster, "offenders")


def test_the_forwarders_uid_on_another_machine_says_nothing_of_a_node(cluster: Cluster) -> None:
    """A machine of the same cluster is a munged with its key and another address. The node's own is heard."""
    settings = load_config(cluster.layout.piolet_toml)
    sender, service = numbers("piolet-forward")[0], numbers("piolet-central")[0]
    lines = [encode(Event("piolet", "node1", "00000000000000f1", 1, time.time(), "node.heartbeat", "root"))]

    def send(socket: str) -> dict[str, Any]:
        words = [settings.central.url, socket, str(service), "piolet", "node1", "/v1/events"]
        words += [one.decode() for one in lines]
        done = subprocess.run(
            [sys.executable, "-c", SEND, *map(str.strip, words)], capture_output=True, text=True, user=sender,
            group=sender, extra_groups=(), timeout=60, cwd="/", check=True,
        )  # fmt: skip
        said: dict[str, Any] = json.loads(done.stdout)
        return said

    with munged("127.0.0.99", key=(cluster.layout.munge / "munge.key").read_bytes()) as (elsewhere,):
        refused = send(elsewhere)
    assert refused["status"] == 403 and "was signed at 127.0.0.99" in refused["error"], refused
    assert send(str(cluster.layout.munge_socket))["have"] == {"00000000000000f1": 1}


def test_a_service_that_hangs_or_is_gone_holds_nobody_up(cluster: Cluster) -> None:
    """srun ends with its own status, within two seconds, and without a word of the service."""
    state = load(cluster.layout.state_file)
    service = state.find("piolet-central") if state else None
    assert service is not None
    for number in (signal.SIGSTOP, signal.SIGKILL):
        assert processes.terminate(service, number)
        if number == signal.SIGKILL:
            assert not processes.wait_end([service], 10)
        bare = time.monotonic()
        assert cluster.run("alice", "srun", "-n1", "true").status == 0
        began = time.monotonic()
        done = fail(cluster, "alice", "node1", 5)
        took = time.monotonic() - began
        assert done.status == 5 and line(done) == "" and "piolet" not in done.err
        assert took < 2.5 + 3 * (began - bare)
