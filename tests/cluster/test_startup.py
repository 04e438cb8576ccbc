"""[startup]: commands in the container before a step's tasks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.cluster.nodes import Node
from tests.cluster.support import Cluster, busybox_layer

ALICE = "alice"


def edf_of(cluster: Cluster, room: Path, tiny: str, startup: str, head: str = "") -> Path:
    return cluster.edf(ALICE, f'image = "{tiny}"\n{head}[startup]\n{startup}\n', room)


def test_on_each_node_before_its_tasks(cluster: Cluster, tiny: str, room: Path) -> None:
    edf = edf_of(cluster, room, tiny, 'commands = ["echo $SLURMD_NODENAME >/who; id -u >>/who", "echo told"]')
    done = cluster.srun(ALICE, edf, "-N2", "-n4", "--ntasks-per-node=2", "cat", "/who", cwd=room)
    uid = cluster.run(ALICE, "id", "-u").good()
    assert sorted(done.good().split("\n")) == sorted(f"node1\n{uid}node1\n{uid}node2\n{uid}node2\n{uid}".split("\n"))
    assert done.err == "told\n"


def test_with_both_builders_and_an_entrypoint(node: Node, cluster: Cluster, room: Path) -> None:
    image = cluster.push("entered", [busybox_layer()], Env=["PATH=/bin"], Entrypoint=["/bin/env", "ENTERED=1"])
    text = f'image = "{image}"\nentrypoint = true\n[startup]\ncommands = "echo x >/x"\n'
    assert node.sh(text, "cat /x; echo $ENTERED").good() == "x\n1\n"


def test_a_failure_ends_the_step(cluster: Cluster, tiny: str, room: Path) -> None:
    edf = edf_of(cluster, room, tiny, 'commands = ["echo why; exit 9", "echo never"]')
    done = cluster.srun(ALICE, edf, "-n2", "echo", "ran", cwd=room)
    assert done.status == 1 and done.out == ""
    assert "why\n" in done.err and "never" not in done.err
    found = re.findall(
        r"piolet: error: node node\d: \[startup\] failed: command 1 echo why; exit 9, ended .* 9\n", done.err
    )
    assert len(found) == 1 and done.err.count("hint: ") == 1


def test_too_late(cluster: Cluster, tiny: str, room: Path) -> None:
    edf = edf_of(cluster, room, tiny, 'commands = "sleep 1000"\ntimeout = "1s"')
    done = cluster.srun(ALICE, edf, "-n2", "echo", "ran", cwd=room)
    assert done.status == 1 and done.out == "" and "[startup] did not end within 1 s\nhint: " in done.err


def test_once_in_a_job(cluster: Cluster, tiny: str, room: Path) -> None:
    edf = edf_of(
        cluster, room, tiny, f'commands = "echo x >>{room}/count; sleep 0.2"\nper = "job"', f'mounts = ["{room}"]\n'
    )
    script = f"srun -N2 -n4 cat {room}/count\nsrun -N1 -n1 cat {room}/count\n"
    assert cluster.sbatch(ALICE, script, "-N2", "-n4", f"--environment={edf}", cwd=room).split() == ["x"] * 5


def test_a_failure_in_the_job_is_told_on_each_node(cluster: Cluster, tiny: str, room: Path) -> None:
    edf = edf_of(cluster, room, tiny, f'commands = "sleep 0.5; ls {room}/none"\nper = "job"')
    done = cluster.srun(ALICE, edf, "-N2", "-n2", "echo", "ran", cwd=room)
    assert done.status == 1 and done.out == ""
    assert "[startup] failed: command 1" in done.err and "[startup] of this job failed" in done.err


def test_as_root_in_the_container_and_in_the_batch_script(cluster: Cluster, tiny: str, room: Path) -> None:
    head = 'remap_root = true\nscript = "inside"\n'
    edf = edf_of(cluster, room, tiny, 'commands = "id -u >/who; chown 5 /who"', head)
    said = cluster.sbatch(ALICE, "#!/bin/sh\ncat /who; id -u\n", f"--environment={edf}", cwd=room)
    assert said == "0\n0\n"


@pytest.mark.parametrize("per", ["node", "job"])
def test_check_and_explain(cluster: Cluster, tiny: str, room: Path, per: str) -> None:
    edf = edf_of(cluster, room, tiny, f'commands = "x"\nper = "{per}"\ntimeout = "1h"')
    assert "is valid" in cluster.run(ALICE, "piolet", "env", "check", edf, cwd=room).good()
    text = cluster.run(ALICE, "piolet", "env", "explain", edf, cwd=room).good()
    assert 'timeout = "3600s"' in text and f'per = "{per}"' in text
