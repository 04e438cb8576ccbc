"""What only a machine of one's own lets one try: settings of the whole kernel, in a guest of tools/kernels."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from piolet.node.root import imagemounts

from tests.cluster.faults import Faults
from tests.cluster.support import Cluster
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.kernels,
    pytest.mark.skipif(
        "PIOLET_TEST_GUEST" not in os.environ, reason="changes settings of the kernel: make test-kernels"
    ),
]
CLONE = Path("/proc/sys/kernel/unprivileged_userns_clone")


@pytest.fixture
def roots_alone(cluster: Cluster, tiny_edf: Path) -> Iterator[Faults]:
    """User namespaces are root's to make; node1's pioletd was started then."""
    if not CLONE.exists():
        pytest.skip("this kernel has no kernel.unprivileged_userns_clone, which is Debian's")
    faults = Faults(cluster, tiny_edf)
    before = CLONE.read_text()
    CLONE.write_text("0\n")
    try:
        faults.restart_pioletd("node1")
        yield faults
    finally:
        CLONE.write_text(before)
        faults.restart_pioletd("node1")


def test_containers_where_users_may_make_no_namespaces(roots_alone: Faults) -> None:
    faults = roots_alone
    state = str(faults.root("node1") / "run/piolet")
    wait_until(lambda: imagemounts.noted(state) is not None, 30, "what pioletd found of its kernel")
    choice = imagemounts.noted(state)
    assert choice is not None and choice.helped
    denied = faults.cluster.run("alice", "srun", "-w", "node1", "unshare", "-U", "true")
    assert denied.status != 0, "the setting is not in force"
    script = "cat /marker; grep -E '^Cap(Eff|Prm|Amb|Inh)' /proc/self/status | cut -f2 | sort -u; unshare -U true && id"
    done = faults.srun("alice", "-w", "node1", "sh", "-c", script, timeout=60)
    assert done.out == "in the image\n0000000000000000\n", done
