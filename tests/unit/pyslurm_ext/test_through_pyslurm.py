"""pyslurm_ext by way of pyslurm: a stand-in with the names of pyslurm 25.11, which cannot run here, gives the values.

So this shows what is asked of pyslurm and what is made of its answers, and not that a real one answers so.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import pyslurm_ext
from pyslurm_ext import SlurmError

JOB = {
    "id": 7, "name": "train", "state": "RUNNING", "user_id": 1000, "group_id": 100, "partition": "main",
    "account": None, "qos": "normal", "allocated_nodes": "node[1-2]", "num_nodes": 2, "cpus": 8, "ntasks": 4,
    "priority": 0,
    "time_limit": "UNLIMITED", "submit_time": 1, "start_time": 2, "end_time": None, "state_reason": None,
    "comment": "c", "working_directory": "/w", "command": "/w/x", "array_id": None, "array_task_id": 0,
    "requeue_count": 1, "exit_code": 3, "exit_code_signal": 0,
}  # fmt: skip
NODE = {
    "name": "node1", "state": "IDLE+DRAIN", "total_cpus": 16, "real_memory": 1000, "free_memory": None,
    "cpu_load": 0.25, "configured_gres": {"gpu:a100": 4, "tmp": 1}, "allocated_gres": {},
    "available_features": ["a", "b"],
    "reason": "ECC", "reason_user": "root", "reason_time": 5, "boot_time": 1, "slurmd_start_time": 2,
    "hostname": "node1", "slurm_version": "25.11.1",
}  # fmt: skip
STEP = {
    "job_id": 7, "id": "batch", "name": "batch", "state": "RUNNING", "user_id": 1000, "partition": "main",
    "allocated_nodes": ["node1", "node2"], "ntasks": 1, "cpus": 8, "start_time": 2,
}  # fmt: skip
PARTITION = {
    "name": "main", "state": "UP", "nodes": "node[1-4]", "total_nodes": 4, "total_cpus": 64, "max_time": "UNLIMITED",
    "default_time": 60, "is_default": True,
}  # fmt: skip


class PyslurmError(Exception):
    errno = 0


class StandIn(ModuleType):
    """A pyslurm that notes what is changed, and refuses what is about job 404."""

    def __init__(self) -> None:
        super().__init__("pyslurm")
        self.done: list[tuple[Any, ...]] = []
        self.__version__ = "25.11.2"
        self.PyslurmError = PyslurmError
        one_job, one_node = SimpleNamespace(**JOB), SimpleNamespace(**NODE)
        steps = {"batch": SimpleNamespace(**STEP)}
        self.Jobs = SimpleNamespace(load=lambda: {7: one_job})
        self.Nodes = SimpleNamespace(load=lambda: {"node1": one_node})
        self.JobSteps = SimpleNamespace(load=lambda job: steps, load_all=lambda: {7: steps})
        self.Partitions = SimpleNamespace(load=lambda: {"main": SimpleNamespace(**PARTITION)})
        self.JobSubmitDescription = dict
        self.utils = SimpleNamespace(
            nodelist_from_range_str=lambda text: {"node[1-2]": ["node1", "node2"]}[text],
            nodelist_to_range_str=lambda names: ",".join(names),
        )
        done = self.done

        class Job:
            def __init__(self, number: int) -> None:
                self.number = number

            @staticmethod
            def load(number: int) -> SimpleNamespace:
                refuse(number)
                return one_job

            def requeue(self, hold: bool = False) -> None:
                refuse(self.number)
                done.append(("requeue", self.number, hold))

            def modify(self, changes: dict[str, str]) -> None:
                done.append(("modify", self.number, changes))

        class Node:
            def __init__(self, name: str = "", **changes: str) -> None:
                self.name, self.changes = name, changes

            @staticmethod
            def load(name: str) -> SimpleNamespace:
                return one_node

            def modify(self, wanted: Node) -> None:
                done.append((self.name, wanted.changes))

        self.Job, self.Node = Job, Node


def refuse(number: int) -> None:
    if number == 404:
        error = PyslurmError("Invalid job id specified")
        error.errno = 2017
        raise error


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """pyslurm is there, and this machine's own binding is not."""
    found = StandIn()
    monkeypatch.setitem(sys.modules, "pyslurm", found)
    monkeypatch.setitem(sys.modules, "pyslurm_ext.native", None)
    monkeypatch.delitem(sys.modules, "pyslurm_ext.through_pyslurm", raising=False)
    yield found
    sys.modules.pop("pyslurm_ext.through_pyslurm", None)


def test_it_is_taken_where_there_is_no_binding(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pyslurm_ext.connect().__name__ == pyslurm_ext.connect("pyslurm").__name__ == "pyslurm_ext.through_pyslurm"
    with pytest.raises(SlurmError, match="there is no way to Slurm from Python here"):
        pyslurm_ext.connect("native")
    monkeypatch.setitem(sys.modules, "pyslurm", None)
    monkeypatch.delitem(sys.modules, "pyslurm_ext.through_pyslurm")
    with pytest.raises(SlurmError, match="install libslurm and its headers"):
        pyslurm_ext.connect()


def test_it_has_the_functions_of_the_binding(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    other = pyslurm_ext.connect()
    monkeypatch.delitem(sys.modules, "pyslurm_ext.native")
    native = importlib.import_module("pyslurm_ext.native")

    def public(module: ModuleType) -> set[str]:
        return {
            name for name, value in vars(module).items() if callable(value) and value.__module__ == module.__name__
        } - {name for name in vars(module) if name.startswith("_")}

    assert public(native) == public(other)


def test_records(stand_in: StandIn) -> None:
    slurm = pyslurm_ext.connect()
    (job,) = slurm.jobs()
    assert job == slurm.job(7) and tuple(job[:9]) == (
        7,
        "train",
        "RUNNING",
        1000,
        100,
        "main",
        None,
        "normal",
        "node[1-2]",
    )
    assert (job.time_limit, job.array_task_id, job.exit_code, job.reason, job.priority) == (
        None,
        None,
        3 << 8,
        "None",
        0,
    )
    (node,) = slurm.nodes()
    assert node == slurm.node("node1")
    assert (node.state, node.flags, node.load) == ("IDLE", {"DRAIN"}, 25)
    assert (node.gres, node.gres_used, node.features, node.reason_user_id) == ("gpu:a100:4,tmp:1", "", "a,b", 0)
    assert slurm.steps() == slurm.steps(7) and slurm.steps()[0].nodes == "node1,node2"
    (partition,) = slurm.partitions()
    assert (partition.max_time, partition.default_time, partition.default) == (None, 60, True)
    assert slurm.snapshot() == ([job], [node], [partition])
    assert slurm.version() == (25, 11, 0)


def test_changes(stand_in: StandIn) -> None:
    slurm = pyslurm_ext.connect()
    slurm.drain("node[1-2]", "ECC errors")
    slurm.resume(["node1"])
    slurm.requeue(7, hold=True)
    slurm.set_comment(7, "good")
    drained = {"state": "DRAIN", "reason": "ECC errors"}
    assert stand_in.done == [
        ("node1", drained), ("node2", drained), ("node1", {"state": "RESUME"}), ("requeue", 7, True),
        ("modify", 7, {"comment": "good"}),
    ]  # fmt: skip
    assert slurm.compress(["b", "a", "b"]) == "a,b"


def test_refusals(stand_in: StandIn) -> None:
    slurm = pyslurm_ext.connect()
    with pytest.raises(SlurmError, match="cannot requeue job 404: Invalid job id specified") as caught:
        slurm.requeue(404)
    assert caught.value.code == 2017
    with pytest.raises(SlurmError, match="without a reason"):
        slurm.drain("node1", " ")
    with pytest.raises(SlurmError, match="no node is named"):
        slurm.resume([])
