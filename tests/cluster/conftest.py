"""One private cluster for all cluster tests of a run, and the small images that they share.

The cluster is started in build/test-cluster and ended afterwards, whatever happens between. To work on tests,
PIOLET_TEST_CLUSTER=DIRECTORY names a cluster that is used instead; it is started if need be, and left running.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cluster.support import BUSYBOX, ROOT, Cluster, busybox_layer, call_tool
from tools.cluster.packages import missing

# A guest with another kernel (tools/kernels) is slow: one node is what its tests need.
NODES, GPUS = int(os.environ.get("PIOLET_TEST_NODES", "4")), 2


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is here as cluster tests; without what they need they are skipped, and say for lack of what."""
    absent = missing() + [name for name in ("script", "squashfuse") if shutil.which(name) is None]
    absent += [] if BUSYBOX.exists() else ["busybox (busybox-static)"]
    why = "needs root, to start a Slurm cluster of its own" if os.geteuid() != 0 else ""
    if not why and absent:
        why = f"not installed: {', '.join(absent)}"
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.cluster)
            if why:
                item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A cluster of four nodes (or PIOLET_TEST_NODES) with pioletd on each, the image service and a registry."""
    named = os.environ.get("PIOLET_TEST_CLUSTER")
    directory = Path(named) if named else ROOT / "build" / "test-cluster"
    if not named:
        call_tool("down", "--dir", str(directory))
    call_tool("up", "--nodes", str(NODES), "--gpus", str(GPUS), "--dir", str(directory))
    try:
        made = Cluster(directory)
        yield made
        made.remove_rooms()
    finally:
        if not named:
            call_tool("down", "--dir", str(directory))


@pytest.fixture(scope="session")
def tiny(cluster: Cluster) -> str:
    """A small image with a static busybox, in the cluster's registry."""
    return cluster.push("tiny", [busybox_layer()], Env=["PATH=/bin", "FROM_IMAGE=yes"])


@pytest.fixture(scope="session")
def tiny_edf(cluster: Cluster, tiny: str) -> Path:
    """A definition file that names `tiny` and nothing else; everybody may read it, and the image is pulled."""
    edf = cluster.edf("alice", f'image = "{tiny}"\n')
    for user in ("alice", "bob"):
        cluster.run(user, "piolet", "image", "pull", tiny).good()
    return edf


@pytest.fixture
def many() -> Iterator[ThreadPoolExecutor]:
    """Threads to wait for several commands at once."""
    with ThreadPoolExecutor(8) as pool:
        yield pool
