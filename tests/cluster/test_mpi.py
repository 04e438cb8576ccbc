"""Real MPI libraries in images, over nodes: Debian's Open MPI by PMIx, MPICH by PMI2.

The nodes of a private cluster have one kernel, by which UCX takes them for one machine whose memory its ranks share,
and fails as they do not: so it has TCP only. Open MPI 5 leaves out the loopback interface, the only one of such nodes,
unless it is named. On nodes that are machines they need no such words.
"""

from __future__ import annotations

import pytest

from tests.cluster.support import Cluster, busybox_layer
from tests.support import mpi

EXPECTED = [f"rank {rank} of 4, sum 6, inside" for rank in range(4)]


@pytest.fixture(scope="module")
def openmpi(cluster: Cluster) -> str:
    """An image with Open MPI and libpmix."""
    if why := mpi.lacking("openmpi") or mpi.slurm_lacks_pmix():
        pytest.skip(why)
    return cluster.push("openmpi", [busybox_layer(), mpi.layer("openmpi")], Env=["PATH=/bin"])


def test_open_mpi_by_pmix(cluster: Cluster, openmpi: str) -> None:
    edf = cluster.edf("alice", f'image = "{openmpi}"\n[env]\nOMPI_MCA_btl_tcp_if_include = "lo"\n')
    assert "pmix" in cluster.run("alice", "srun", "--mpi=list").both
    cluster.run("alice", "piolet", "image", "pull", openmpi).good()
    done = cluster.srun("alice", edf, "--mpi=pmix", "-N2", "-n4", "hello", timeout=120)
    assert sorted(done.good().splitlines()) == EXPECTED
    assert done.said == "", "PMIx complains of what it cannot open"


def test_mpich_by_pmi2(cluster: Cluster) -> None:
    if why := mpi.lacking("mpich"):
        pytest.skip(why)
    image = cluster.push("mpich", [busybox_layer(), mpi.layer("mpich")], Env=["PATH=/bin"])
    edf = cluster.edf("alice", f'image = "{image}"\n[env]\nUCX_TLS = "tcp,self"\n')
    done = cluster.srun("alice", edf, "--mpi=pmi2", "-N2", "-n4", "hello", timeout=120)
    assert sorted(done.good().splitlines()) == EXPECTED
