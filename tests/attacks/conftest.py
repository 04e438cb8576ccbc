"""The clusters that attacks are made on, and how a weakened build turns the outcome round.

`cluster` has control groups (CGROUPS=1) where the machine has controllers; `plain` has not, and Slurm loses what leaves
its session there.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from tests.attacks.attack import WEAKENED, Broken
from tests.attacks.weakenings import WEAKENINGS
from tests.cluster.faults import Faults, on
from tests.cluster.support import Cluster, lacking, no_controllers, running

PROGRAMS = Path(__file__).parent / "programs"
HERE = Path(__file__).parent


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "attack: an attack, with the weakenings that let it succeed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    why = lacking("cc", "squashfuse")
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


def _running(name: str, nodes: int, *more: str) -> Iterator[Faults]:
    # The weakened build lies as RPMs do: usr/lib/piolet is the environment that this interpreter is of.
    build = ["--from-rpm", str(Path(sys.prefix).parents[2])] if WEAKENED else []
    with running(f"{'weakened-' if WEAKENED else ''}{name}", "--nodes", str(nodes), *build, *more) as cluster:
        yield on(cluster, "alice", "bob")


@pytest.fixture(scope="session")
def faults() -> Iterator[Faults]:
    """A cluster of two nodes, with control groups where there are controllers; its `edf` is of a small image."""
    yield from _running("attacked", 2, *([] if no_controllers() else ["--cgroups"]))


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
