"""The packages, built twice in different places at the same time, once for all tests of a run, in whichever process."""

from __future__ import annotations

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support import once
from tests.support import rpm as support
from tests.support.rpm import Builds, Packages, Root
from tools import rpm
from tools.cluster.packages import slurm_version


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
def builds() -> Builds:
    """Build everything, twice at the same time, at paths of different lengths."""
    with once.room("rpm") as home:
        places = home / "one", home / "another-one-elsewhere"
        done = home / "builds.json"
        if not done.exists():
            wheels = (rpm.ROOT / "build" / "wheels").resolve()
            rpm.fetch(wheels)
            for place in places:
                shutil.rmtree(place, ignore_errors=True)
            with ThreadPoolExecutor(2) as pool:
                pair = list(pool.map(lambda place: rpm.build(place, wheels, "1", "--noclean"), places))
            shutil.rmtree(places[1] / "BUILD")
            done.write_text(json.dumps([list(map(str, paths)) for paths in pair]))
        first, second = (packages_of(names) for names in json.loads(done.read_text()))
        return Builds(first, second, places[0])


def packages_of(names: list[str]) -> Packages:
    return Packages.of([Path(name) for name in names])


@pytest.fixture(scope="session")
def packages(builds: Builds) -> Packages:
    return builds.first


@pytest.fixture(scope="session")
def system(packages: Packages) -> Path:
    """A package that stands for what ours require of the system, Slurm apart."""
    # What is required as 'name >= version' is provided in that very version.
    provides = [line.replace(" >= ", " = ") for line in packages.foreign() if not line.startswith("(slurm ")]
    return support.stand_in(once.own("stand-ins"), "the-system", provides)


@pytest.fixture(scope="session")
def slurm() -> Path:
    """A package that stands for Slurm in the version of the headers here."""
    major, minor = slurm_version()
    return support.stand_in(once.own("stand-ins"), "this-slurm", [f"slurm = {major}.{minor:02}.8"])


@pytest.fixture(scope="session")
def installed(packages: Packages, system: Path, slurm: Path) -> Root:
    """A root with all packages, every requirement satisfied, without systemd. Tests leave it as it is."""
    root = Root(once.own("installed"))
    root.rpm("-i", system, slurm, *packages.paths.values())
    return root


# What rpmbuild has to know of a file to find what it requires. To try all that libmagic knows on each of 9,000 files is
# most of what packing costs; only the release that is installed over the first does without (decision 181).
MAGIC = """\
0	string	\\177ELF	ELF
>4	byte	1	32-bit
>4	byte	2	64-bit
>5	byte	1	LSB
0	string	#!	a
>&0	string/wt	x	%s script text executable
"""


@pytest.fixture(scope="session")
def next_release(builds: Builds) -> Packages:
    """Release 2: the same, but for a new line in two files of configuration."""
    with once.room("rpm") as home:
        done = home / "next.json"
        if not done.exists():
            old = next((builds.work / "BUILDROOT").glob("*-1.*"))
            new = old.with_name(old.name.replace("-1.", "-2."))
            shutil.rmtree(new, ignore_errors=True)
            shutil.copytree(old, new, symlinks=True)
            for path in ("/etc/piolet/piolet.toml", "/etc/slurm/plugstack.conf.d/piolet.conf"):
                with (new / path[1:]).open("a") as file:
                    file.write("# new in release 2\n")
            (home / "magic").write_text(MAGIC, "ascii")
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("MAGIC", str(home / "magic"))
                built = rpm.rpmbuild(builds.work, "2", "--short-circuit", "--noclean")
            assert packages_of(list(map(str, built))).foreign() == builds.first.foreign()
            done.write_text(json.dumps(list(map(str, built))))
        return packages_of(json.loads(done.read_text()))
