"""A cluster with a central service: what users read at the end of a step that failed, and what it concludes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from piolet.events.envelope import Event, encode
from piolet.site.config import load as load_config

from tests.cluster.support import Cluster, Result, running
from tests.support.central import SEND
from tests.support.munge import munged
from tests.support.waiting import wait_until
from tools import demo_central
from tools.cluster import config, lifecycle, network, packages, processes, services
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


def beat(cluster: Cluster, node: str, epoch: str, seq: int, socket: str = "") -> dict[str, Any]:
    """Have a node say that it is well, as its forwarder does; return the service's answer."""
    settings = load_config(cluster.layout.piolet_toml)
    sender, service = numbers("piolet-forward")[0], numbers("piolet-central")[0]
    record = encode(Event("piolet", node, epoch, seq, time.time(), "node.heartbeat", "root")).decode().strip()
    words = [settings.central.url, socket or str(cluster.layout.munge_socket), str(service), "piolet", node]
    done = subprocess.run(
        [sys.executable, "-c", SEND, *words, "/v1/events", record], capture_output=True, text=True, user=sender,
        group=sender, extra_groups=(), timeout=60, cwd="/", check=True,
    )  # fmt: skip
    said: dict[str, Any] = json.loads(done.stdout)
    return said


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
    with munged("127.0.0.99", key=(cluster.layout.munge / "munge.key").read_bytes()) as (elsewhere,):
        refused = beat(cluster, "node1", "00000000000000f1", 1, elsewhere)
    assert refused["status"] == 403 and "was signed at 127.0.0.99" in refused["error"], refused
    assert beat(cluster, "node1", "00000000000000f1", 1)["have"] == {"00000000000000f1": 1}


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


SOON = """
import sys
from piolet.central import answers, places
from piolet.cli import centrald
answers.SILENT_S, places._KEPT_S, places._AGAIN_S = 3.0, 1.0, 1.0
sys.exit(centrald.main(sys.argv[1:]))
"""
RULES = """
[silent]
about = "it has said nothing"
source = "a test"
date = 2026-11-30
events = ["node.heartbeat", "node.start"]
missing = "3s"
burst = "1s"
window = "1h"
when = "count >= 1"
then = "ticket"
recovery = ["heard", "ack"]
"""


def new_slurmctld(cluster: Cluster, address: str) -> None:
    """Start slurmctld again, as Slurm asks of who takes a node out of slurm.conf."""
    layout, state = cluster.layout, load(cluster.layout.state_file)
    assert state is not None and (old := state.find("slurmctld")) is not None
    assert processes.terminate(old) and not processes.wait_end([old], 30)
    shutil.rmtree(layout.run / "slurmctld")
    record = lifecycle.Record(layout.state_file, state)
    settings = config.Settings(layout, state.nodes, True, address, True, state.ports, packages.slurm_version())
    services.start_slurmctld(settings, Path(state.cgroup), record.keep)


def test_a_node_that_is_retired_is_not_waited_for(cluster: Cluster) -> None:
    """Staff acknowledges that one is silent, another is taken out of slurm.conf. The service is one of shorter times,
    and node1 alone speaks, whose partition is hidden from users.
    """
    layout, state = cluster.layout, load(cluster.layout.state_file)
    assert state is not None
    conf = {**os.environ, "SLURM_CONF": str(layout.slurm_conf)}
    for words in ("create PartitionName=hidden Nodes=node1 Hidden=YES", "update PartitionName=main Nodes=node[2-3]"):
        subprocess.run(["scontrol", *words.split()], check=True, capture_output=True, timeout=60, env=conf)
    ours = [one for one in state.processes if one.name.startswith(("piolet-central", "piolet-forward"))]
    ended = [one for one in ours if processes.terminate(one)]
    assert not processes.wait_end(ended, 20)
    (layout.etc / "rules.toml").write_text(RULES)
    text = layout.piolet_toml.read_text().replace("[central]\n", f'[central]\nrules = "{layout.etc}/rules.toml"\n')
    soon = layout.etc / "soon.toml"
    soon.write_text(text)
    uid, gid = numbers("piolet-central")
    sequence = iter(range(1, 10_000))

    def status() -> dict[str, Any]:
        assert "have" in beat(cluster, "node1", "00000000000000f2", next(sequence))
        said: dict[str, Any] = json.loads(staff(cluster, "status", "--json"))
        return said

    def is_so(silent: list[str], retired: list[str]) -> bool:
        said = status()
        return (said["silent_nodes"], said["retired_nodes"]) == (silent, retired)

    with (layout.log / "soon.log").open("wb") as log, subprocess.Popen(
        [layout.venv_bin / "python", "-c", SOON, "--config", str(soon)], stdout=log, stderr=log, user=uid, group=gid,
        extra_groups=(), cwd="/", env=conf,
    ) as service:  # fmt: skip
        try:
            port = state.ports["central"]
            host = load_config(layout.piolet_toml).central.listen.rpartition(":")[0]
            wait_until(lambda: network.accepts(host, port), 60, "the service")
            for node in ("node2", "node3"):
                assert "have" in beat(cluster, node, "00000000000000f2", 1)
            wait_until(lambda: is_so(["node2", "node3"], []), 60, "two silent nodes")
            wait_until(lambda: status()["cases"] and "node2" in staff(cluster, "offenders"), 30, "the case of node2")
            cases = [one for one in staff(cluster, "offenders").splitlines() if "node2" in one and "nothing" in one]
            assert staff(cluster, "ack", cases[0].split()[0], "scrapped") == "written down\n"
            assert is_so(["node3"], ["node2"])
            lines = layout.slurm_conf.read_text().splitlines(keepends=True)
            layout.slurm_conf.write_text("".join(one for one in lines if not one.startswith("NodeName=node3 ")))
            new_slurmctld(cluster, host)
            wait_until(lambda: is_so([], ["node2", "node3"]), 60, "the end of waiting for node3")
            assert "2 nodes are retired: " in staff(cluster, "status")
        finally:
            service.terminate()
