"""The clusters that attacks are made on, and how a weakened build turns the outcome round.

`cluster` has control groups (CGROUPS=1) where the machine has controllers; `plain` has not, and Slurm loses what leaves
its session there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from tests.attacks.attack import WEAKENED, Broken
from tests.attacks.weakenings import WEAKENINGS
from tests.cluster.faults import Faults
from tests.cluster.support import BUSYBOX, ROOT, Cluster, busybox_layer, call_tool
from tools.cluster import cgroup, controllers
from tools.cluster.errors import ClusterError
from tools.cluster.packages import missing

PROGRAMS = Path(__file__).parent / "programs"
HERE = Path(__file__).parent


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "attack: an attack, with the weakenings that let it succeed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    absent = missing() + [name for name in ("cc", "squashfuse") if shutil.which(name) is None]
    absent += [] if BUSYBOX.exists() else ["busybox (busybox-static)"]
    why = "needs root, to start a Slurm cluster of its own" if os.geteuid() != 0 else ""
    if not why and absent:
        why = f"not installed: {', '.join(absent)}"
    for item in items:
        if HERE not in item.path.parents:
            continue
        item.add_marker(pytest.mark.cluster)
        marker = item.get_closest_marker("attack")
        if marker is None:
            raise pytest.UsageError(f"{item.nodeid} is not marked as an attack, see tests/attacks/attack.py")
        unknown = set(marker.args) - WEAKENINGS.keys()
        if unknown:
            raise pytest.UsageError(f"{item.nodeid} names the unknown weakenings {', '.join(sorted(unknown))}")
        if why:
            item.add_marker(pytest.mark.skip(reason=why))
        elif WEAKENED and not marker.args:
            item.add_marker(pytest.mark.skip(reason=f"no check of ours to remove: {marker.kwargs['kernel']}"))


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """On the weakened build, an attack that does not succeed is the failure."""
    marker = pyfuncitem.get_closest_marker("attack")
    if not WEAKENED or marker is None:
        return (yield)
    try:
        yield
    except Broken:
        return True
    pytest.fail(f"the attack fails although the checks were removed: {', '.join(marker.args)}")


def _controllers() -> bool:
    try:
        controllers.find(cgroup.MOUNTINFO.read_text("utf-8"))
    except ClusterError:
        return False
    return True


def _running(name: str, nodes: int, *more: str) -> Iterator[Faults]:
    directory = ROOT / "build" / f"{'weakened-' if WEAKENED else ''}{name}"
    # The weakened build lies as RPMs do: usr/lib/piolet is the environment that this interpreter is of.
    build = ["--from-rpm", str(Path(sys.prefix).parents[2])] if WEAKENED else []
    call_tool("down", "--dir", str(directory))
    call_tool("up", "--nodes", str(nodes), "--dir", str(directory), *build, *more)
    try:
        cluster = Cluster(directory)
        tiny = cluster.push("tiny", [busybox_layer()], Env=["PATH=/bin"])
        edf = cluster.edf("alice", f'image = "{tiny}"\n')
        for user in ("alice", "bob"):
            cluster.run(user, "piolet", "image", "pull", tiny).good()
        yield Faults(cluster, edf)
        cluster.remove_rooms()
    finally:
        call_tool("down", "--dir", str(directory))


@pytest.fixture(scope="session")
def faults() -> Iterator[Faults]:
    """A cluster of two nodes, with control groups where there are controllers; its `edf` is of a small image."""
    yield from _running("attacked", 2, *(["--cgroups"] if _controllers() else []))


@pytest.fixture(scope="session")
def cluster(faults: Faults) -> Cluster:
    return faults.cluster


@pytest.fixture(scope="session")
def confined(faults: Faults) -> Faults:
    """The cluster, if its steps have control groups."""
    if not faults.state.cgroups:
        pytest.skip("this machine has no control group controllers: make cluster CGROUPS=1 is not to be had")
    return faults


@pytest.fixture(scope="session")
def plain() -> Iterator[Faults]:
    """A cluster of one node with proctrack/linuxproc."""
    yield from _running("attacked-plain", 1)


@pytest.fixture(scope="session")
def compiled() -> Iterator[Callable[[str], Path]]:
    """Compiles programs/NAME.c, statically, to where every user can run it."""
    folder = Path(tempfile.mkdtemp(prefix="piolet-attack-"))
    folder.chmod(0o755)

    def compile_(name: str) -> Path:
        out = folder / name
        if not out.exists():
            words = ["cc", "-O2", "-Wall", "-Werror", "-static", "-o", str(out), str(PROGRAMS / f"{name}.c")]
            subprocess.run(words, check=True)
        return out

    yield compile_
    shutil.rmtree(folder, ignore_errors=True)
