"""One private cluster for all cluster tests of a worker, and the small images that they share.

The cluster is started in build/test-cluster (a worker's: test-cluster-gw1) and ended afterwards, whatever happens
between. To work on tests, PIOLET_TEST_CLUSTER=DIRECTORY names a cluster that is used instead; it is started if need
be, and left running.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from _pytest.runner import runtestprotocol

from tests.cluster import crashes
from tests.cluster.faults import Faults
from tests.cluster.nodes import Node
from tests.cluster.support import Cluster, busybox_layer, call_tool, lacking, running
from tests.support.waiting import wait_until

# A guest with another kernel (tools/kernels) is slow: one node is what its tests need.
NODES, GPUS = int(os.environ.get("PIOLET_TEST_NODES", "4")), 2
WORKER = [name] if (name := os.environ.get("PYTEST_XDIST_WORKER")) else []
CLUSTER, CRASHED = pytest.StashKey[Cluster](), pytest.StashKey[int]()
MACHINES = pytest.StashKey[crashes.Machines]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is here as cluster tests; without what they need they are skipped, and say for lack of what."""
    why = lacking("script", "squashfuse")
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.cluster)
            if why:
                item.add_marker(pytest.mark.skip(reason=why))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Run a test; when slurmd crashed meanwhile, start another, run the test again, and warn of it."""
    if Path(__file__).parent not in item.path.parents:
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    reports = runtestprotocol(item, log=False, nextitem=nextitem)
    cluster = item.config.stash.get(CLUSTER, None)
    gone = crashes.ended(cluster.layout) if cluster is not None else []
    if cluster is not None and gone:
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):  # the tests to come will say so
            for node in gone:
                item.config.stash[MACHINES].restart(node)
        _warn(item, f"slurmd on {', '.join(gone)} ended by itself in this test (see tests/cluster/crashes.py)")
        crashed = item.config.stash[CRASHED] = item.config.stash.get(CRASHED, 0) + 1
        if crashed <= crashes.MOST and any(report.failed for report in reports):
            item._initrequest()  # type: ignore[attr-defined]
            reports = runtestprotocol(item, log=False, nextitem=nextitem)
    if cluster is not None and any(report.failed for report in reports):
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):  # or all tests to come fail for this one
            wait_until(lambda: crashes.put_right(cluster), 30)
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _warn(item: pytest.Item, text: str) -> None:
    """Put a warning into the summary of the run, that of pytest-xdist included."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        item.warn(pytest.PytestWarning(text))
    for message in caught:
        item.ihook.pytest_warning_recorded.call_historic(
            kwargs={"warning_message": message, "when": "runtest", "nodeid": item.nodeid, "location": None}
        )


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A cluster of four nodes (or PIOLET_TEST_NODES) with pioletd on each, the image service and a registry."""
    for made in _cluster():
        request.config.stash[CLUSTER] = made
        request.config.stash[MACHINES] = machines = crashes.Machines(made)
        yield made
        machines.close()
    del request.config.stash[CLUSTER], request.config.stash[MACHINES]


@pytest.fixture
def machines(request: pytest.FixtureRequest, cluster: Cluster) -> crashes.Machines:
    """The nodes of the cluster that tests share."""
    return request.config.stash[MACHINES]


def _cluster() -> Iterator[Cluster]:
    # Users have one home on all clusters, and what is kept there of a job is found by the job's number.
    first = 1 + 100_000 * sum(int(name.removeprefix("gw")) + 1 for name in WORKER)
    options = ("--nodes", str(NODES), "--gpus", str(GPUS), "--first-job", str(first))
    named = os.environ.get("PIOLET_TEST_CLUSTER")
    if not named:
        with running("-".join(["test-cluster", *WORKER]), *options) as made:
            yield made
        return
    call_tool("up", *options, "--dir", named)
    made = Cluster(Path(named))
    yield made
    made.remove_rooms()


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


@pytest.fixture(scope="module")
def faults(cluster: Cluster, tiny_edf: Path) -> Faults:
    """The cluster, to do harm to."""
    return Faults(cluster, tiny_edf)


@pytest.fixture
def room(cluster: Cluster) -> Path:
    """A directory of alice."""
    return cluster.room("alice")


@pytest.fixture
def many() -> Iterator[ThreadPoolExecutor]:
    """Threads to wait for several commands at once."""
    with ThreadPoolExecutor(8) as pool:
        yield pool


@pytest.fixture(scope="module")
def crun_node(cluster: Cluster) -> Iterator[str]:
    """node4, its daemon started with a configuration that says `runtime = "crun"`."""
    path = cluster.layout.piolet_toml
    before = path.read_text("utf-8")

    def restart(text: str) -> None:
        path.write_text(text, "utf-8")
        try:
            cluster.tool("stop-pioletd", "node4")
            cluster.tool("start-pioletd", "node4")
        finally:
            path.write_text(before, "utf-8")

    restart(before.replace("[environment]\n", '[environment]\nruntime = "crun"\n'))
    yield "node4"
    restart(before)


@pytest.fixture(params=["native", "crun"])
def node(request: pytest.FixtureRequest, cluster: Cluster) -> Node:
    """A node for each of the two builders."""
    name = request.getfixturevalue("crun_node") if request.param == "crun" else "node1"
    return Node(cluster, name, request.param)
