"""`piolet doctor` on a real node and on the login side: green when all runs, and it names a daemon that is down."""

from __future__ import annotations

import subprocess

import pytest

from tests.cluster.faults import Faults
from tests.cluster.support import Cluster


def doctor(cluster: Cluster, faults: Faults, user: str = "root") -> tuple[int, str]:
    command = (cluster.layout.venv_bin / "piolet", "--config", cluster.layout.piolet_toml, "doctor")
    conf = f"SLURM_CONF={cluster.layout.etc / 'slurm.conf'}"
    done = subprocess.run(
        faults.on_node("node2", "env", conf, *command, user=user),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert not done.stderr
    return done.returncode, done.stdout


@pytest.mark.parametrize("user", ["root", "alice"])
def test_a_node_is_well(cluster: Cluster, faults: Faults, user: str) -> None:
    status, out = doctor(cluster, faults, user)
    assert status == 0 and " 0 bad" in out and "pioletd takes connections on" in out, out
    # The sockets on which Slurm announces steps are root's alone.
    assert ("pioletd answers on" in out) is (user == "root"), out
    # The cluster for tests has no control groups, and that is all there is to warn of.
    assert "ProctrackType is proctrack/linuxproc" in out and "gives steps no control groups" in out, out
    assert " 2 warnings," in out, out


def test_a_node_whose_daemon_is_down(cluster: Cluster, faults: Faults) -> None:
    faults.stop_pioletd("node2")
    try:
        status, out = doctor(cluster, faults)
    finally:
        faults.start_pioletd("node2")
    assert status == 1 and " 3 bad" in out and "hint: systemctl start pioletd" in out, out


def test_a_login_node_is_well(cluster: Cluster) -> None:
    done = cluster.run("alice", "piolet", "doctor", "--role", "login")
    assert "srun knows --environment" in done.good() and " 0 bad" in done.out
