"""What the run does when slurmd crashes: the node comes back for the tests to come."""

from __future__ import annotations

import os
import signal

from tests.cluster import crashes
from tests.cluster.faults import Faults
from tests.support.waiting import wait_until


def test_a_node_whose_slurmd_crashed_comes_back(faults: Faults) -> None:
    layout = faults.cluster.layout
    assert crashes.ended(layout) == []
    os.kill(faults.daemon("slurmd-node4").pid, signal.SIGKILL)
    wait_until(lambda: crashes.ended(layout) == ["node4"], 10, "the end of slurmd")
    crashes.restart(faults.cluster, "node4")
    assert crashes.ended(layout) == []
    faults.srun("bob", "-w", "node4", "true").good()
