"""A private cluster whose plugins, daemons and commands are those that the packages installed."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.faults import Faults
from tests.cluster.support import Cluster, busybox_layer, call_tool, running
from tests.support.rpm import Root
from tools import rpm
from tools.cluster.packages import missing

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(bool(missing()), reason=f"not installed: {', '.join(missing())}"),
]


@pytest.fixture(scope="module")
def cluster(installed: Root) -> Iterator[Cluster]:
    """Two nodes that run what is in the root of the packages."""
    with running("test-cluster-rpm", "--nodes", "2", "--from-rpm", str(installed.path)) as made:
        yield made


def test_a_step_runs_in_its_environment(cluster: Cluster, installed: Root) -> None:
    """srun takes the packages' plugin and command; the image is pulled, and each node's task is in the container."""
    image = cluster.push("packaged", [busybox_layer()], Env=["PATH=/bin", "FROM_IMAGE=yes"])
    edf = cluster.edf("alice", f'image = "{image}"\n')
    out = cluster.srun(
        "alice", edf, "-N2", "--vet=" + str(vetting(cluster)), "sh", "-c", "echo $FROM_IMAGE $SLURMD_NODENAME"
    )
    assert sorted(out.good().splitlines()) == ["yes node1", "yes node2"]
    assert "2 of 2 nodes good" in out.err
    assert cluster.run("alice", "piolet", "--version").good() == f"piolet {rpm.version()}\n"


def vetting(cluster: Cluster) -> Path:
    """Return a protocol of one quick eval."""
    room = cluster.room("alice")
    return cluster.write("alice", room / "vet.yaml", "name: quick\nevals:\n- type: limits\n")


def test_everything_that_runs_is_the_packages(cluster: Cluster, installed: Root) -> None:
    """Daemons, plugins and the programs on nodes: nothing of this checkout's own build is in use."""
    build = str(cluster.layout.build)
    lines = "".join(path.read_text("utf-8") for path in (cluster.layout.etc / "plugstack.conf.d").iterdir())
    assert lines.count(str(installed.file("/usr/lib64/slurm"))) == 4
    toml = cluster.layout.piolet_toml.read_text("utf-8")
    assert str(installed.file("/usr/libexec/piolet/piolet-entry")) in toml
    assert f"{build}/plugins" not in lines + toml and f"{build}/venv" not in lines + toml
    daemons = commands(Path(cluster.layout.state_file))
    assert len(daemons) == 3
    assert all(line.startswith(str(installed.file("/usr/lib/piolet/bin/python3"))) for line in daemons), daemons


def commands(state: Path) -> list[str]:
    """Return the command lines of the daemons on record."""
    from tools.cluster.state import load

    record = load(state)
    assert record is not None
    ours = [process for process in record.processes if process.name.startswith("piolet")]
    return [Path(f"/proc/{p.pid}/cmdline").read_bytes().replace(b"\0", b" ").decode() for p in ours]


def test_both_kinds_of_cluster_are_told_apart(cluster: Cluster) -> None:
    """`up` does not take a cluster of the packages for one of build/."""
    with pytest.raises(AssertionError, match="from RPMs"):
        call_tool("up", "--nodes", "2", "--dir", str(cluster.directory))


def test_the_doctor_finds_all_well(cluster: Cluster) -> None:
    """On a node with everything, as root there, and on a login node as a user, with the packages' own command."""
    command = [str(cluster.layout.venv_bin / "piolet"), "--config", str(cluster.layout.piolet_toml), "doctor"]
    conf = f"SLURM_CONF={cluster.layout.etc / 'slurm.conf'}"
    faults = Faults(cluster, cluster.edf("alice", 'image = "unused"\n'))
    done = subprocess.run(
        faults.on_node("node2", "env", conf, *command), capture_output=True, text=True, check=False, timeout=60
    )
    # This cluster's Slurm has no control groups, which the doctor warns of.
    assert done.returncode == 0 and " 2 warnings, 0 bad" in done.stdout, done.stdout + done.stderr
    assert "warning  process tracking" in done.stdout and "warning  steps recorded" in done.stdout
    login = cluster.run("alice", "piolet", "doctor", "--role", "login")
    assert login.status == 0 and " 0 bad" in login.out, login
