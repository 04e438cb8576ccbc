"""Control groups of the private cluster: what a machine has of them, and which are a node's. No cluster is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.cluster import controllers
from tools.cluster.errors import ClusterError

CONTROLLERS = "".join(
    f"3{number} 31 0:{number} / /cg/{name} rw - cgroup cgroup rw,{name}\n"
    for number, name in enumerate(("cpu", "cpuset", "devices", "freezer", "memory"))
)


def test_what_the_machine_has_of_controllers(tmp_path: Path) -> None:
    found = controllers.find(CONTROLLERS)
    assert (found.version, found.mounts["memory"]) == (1, Path("/cg/memory"))
    # Two clusters with the same nodes have no group in common.
    mine, theirs = (set(found.groups(tag, ["node1"])) for tag in ("a", "b"))
    assert len(mine) == 5 and not mine & theirs
    # A hierarchy that cpu shares with another controller cannot be mounted by its name alone.
    shared = CONTROLLERS.replace("cgroup rw,cpu\n", "cgroup rw,cpu,cpuacct\n")
    assert sorted(controllers.find(shared).mounts) == ["cpuset", "devices", "freezer", "memory"]
    two = f"41 31 0:38 / {tmp_path} rw - cgroup2 cgroup2 rw\n"
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu memory pids\n")
    found = controllers.find(two)
    assert found.version == 2 and found.groups("a", ["n"]) == [tmp_path / "system.slice/n_slurmstepd.scope"]
    (tmp_path / "cgroup.controllers").write_text("\n")
    with pytest.raises(ClusterError, match="no control group controllers for cpuset, devices, freezer, memory"):
        controllers.find(two)
    with pytest.raises(ClusterError, match="no control group controllers for memory:"):
        controllers.find(CONTROLLERS.rpartition("3")[0] + two)


def test_each_node_has_a_group_of_its_own(tmp_path: Path) -> None:
    """It sees no other node's steps. A fresh cpuset is empty, and so is one in it."""
    mounts = {name: tmp_path / name for name in ("cpuset", "freezer")}
    made = [tmp_path / "cpuset/piolet-cluster-a", *(tmp_path / f"cpuset/piolet-cluster-a/node{n}" for n in (1, 2))]
    for group in made:  # as the kernel makes its files
        group.mkdir(parents=True)
        (group / "cpuset.cpus").write_text("\n")
    (tmp_path / "cpuset" / "cpuset.cpus").write_text("0-1\n")
    (tmp_path / "freezer").mkdir()
    controllers.prepare(controllers.Controllers(1, mounts), "a", ["node1", "node2"])
    assert [(group / "cpuset.cpus").read_text() for group in made] == ["0-1\n"] * 3
    assert sorted(path.name for path in (tmp_path / "freezer/piolet-cluster-a").iterdir()) == ["node1", "node2"]


def test_a_group_of_version_2_that_another_node_uses_is_refused(tmp_path: Path) -> None:
    scope = tmp_path / "system.slice" / "node1_slurmstepd.scope"
    scope.mkdir(parents=True)
    (scope / "cgroup.procs").write_text("4711\n")
    with pytest.raises(ClusterError, match=r"node1_slurmstepd\.scope is in use"):
        controllers.prepare(controllers.Controllers(2, {"unified": tmp_path}), "a", ["node1"])
