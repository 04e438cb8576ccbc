"""The packages, built twice in different places at the same time, once for all tests of a run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support import rpm as support
from tests.support.rpm import Builds, Packages, Root
from tools import rpm
from tools.cluster.packages import slurm_version

# Users of a cluster must reach it.
HOME = (rpm.ROOT / "build").resolve() / "test-rpm"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without what they need these tests are skipped, and say for lack of what."""
    absent = support.missing()
    why = "needs root, to install packages into roots of its own" if os.geteuid() != 0 else ""
    if not why and absent:
        why = f"not installed: {', '.join(absent)}"
    for item in items:
        if why and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture(scope="session")
def builds() -> Iterator[Builds]:
    """Build everything, twice at the same time, at paths of different lengths."""
    shutil.rmtree(HOME, ignore_errors=True)
    HOME.mkdir(parents=True, mode=0o755)
    wheels = (rpm.ROOT / "build" / "wheels").resolve()
    rpm.fetch(wheels)
    places = HOME / "one", HOME / "another-one-elsewhere"
    try:
        with ThreadPoolExecutor(2) as pool:
            first, second = pool.map(lambda place: rpm.build(place, wheels, "1", "--noclean"), places)
        shutil.rmtree(places[1] / "BUILD")
        yield Builds(Packages.of(first), Packages.of(second), places[0])
    finally:
        shutil.rmtree(HOME, ignore_errors=True)


@pytest.fixture(scope="session")
def packages(builds: Builds) -> Packages:
    return builds.first


@pytest.fixture(scope="session")
def system(packages: Packages) -> Path:
    """A package that stands for what ours require of the system, Slurm apart."""
    # What is required as 'name >= version' is provided in that very version.
    provides = [line.replace(" >= ", " = ") for line in packages.foreign() if not line.startswith("(slurm ")]
    return support.stand_in(HOME / "stand-ins", "the-system", provides)


@pytest.fixture(scope="session")
def slurm() -> Path:
    """A package that stands for Slurm in the version of the headers here."""
    major, minor = slurm_version()
    return support.stand_in(HOME / "stand-ins", "this-slurm", [f"slurm = {major}.{minor:02}.8"])


@pytest.fixture(scope="session")
def installed(packages: Packages, system: Path, slurm: Path) -> Root:
    """A root with all packages, every requirement satisfied, without systemd. Tests leave it as it is."""
    root = Root(HOME / "installed")
    root.rpm("-i", system, slurm, *packages.paths.values())
    return root


@pytest.fixture(scope="session")
def next_release(builds: Builds) -> Packages:
    """Release 2: the same, but for a new line in two files of configuration."""
    old = next((builds.work / "BUILDROOT").glob("*-1.*"))
    new = old.with_name(old.name.replace("-1.", "-2."))
    shutil.copytree(old, new, symlinks=True)
    for path in ("/etc/piolet/piolet.toml", "/etc/slurm/plugstack.conf.d/piolet.conf"):
        with (new / path[1:]).open("a") as file:
            file.write("# new in release 2\n")
    return Packages.of(rpm.rpmbuild(builds.work, "2", "--short-circuit", "--noclean"))
