"""What the run does when slurmd crashes: the node comes back for the tests to come."""

from __future__ import annotations

import os
import signal

from tests.cluster import crashes
from tests.cluster.faults import Faults
from tests.support.waiting import wait_until


def test_a_node_whose_slurmd_crashed_comes_back(faults: Faults, machines: crashes.Machines) -> None:
    layout = faults.cluster.layout
    assert crashes.ended(layout) == []
    before = namespaces(faults)
    os.kill(faults.daemon("slurmd-node4").pid, signal.SIGKILL)
    wait_until(lambda: crashes.ended(layout) == ["node4"], 10, "the end of slurmd")
    machines.restart("node4")
    assert crashes.ended(layout) == [] and namespaces(faults) == before
    faults.srun("bob", "-w", "node4", "true").good()


def namespaces(faults: Faults) -> list[str]:
    """Return the namespaces of node4's slurmd."""
    pid = faults.daemon("slurmd-node4").pid
    return [os.readlink(f"/proc/{pid}/ns/{kind}") for kind in crashes.KINDS]
