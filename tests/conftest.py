"""Which tests may run beside each other (`make test`): those of one group are run one after the other.

A group is for what a machine has once. All other tests are free; they use files, ports, users and names of their own.
Workers see the processes of their own tests only (tests/worker).
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support import once

TESTS = Path(__file__).parent
GROUPS = {
    # Clusters of their own, one after the other, beside the cluster that most tests share. All have the same accounts:
    # an attack that kills all processes of a user's finds those of its own worker.
    "clusters": (
        "attacks",
        "cluster/test_accounting.py",
        "cluster/test_central.py",
        "cluster/test_confined.py",
        "cluster/test_hardened.py",
        "cluster/test_private_tmp.py",
        "packaging/test_guide.py",
        "packaging/test_rpm_cluster.py",
    ),
    # The cluster that is shared; what steps are shown of /dev, /sys and /tmp.
    "cluster": ("cluster", "unit/node/test_imagemounts.py", "unit/node/test_mounts.py", "unit/tools"),
    # Two users and the account of a service, by number; hostile programs run as each of them.
    "images": ("images",),
    # They share packages, which tests of clusters need, too: built at the same time, so that those come to them late.
    "packages": ("packaging/test_rpm.py", "packaging/test_rpm_install.py", "packaging/test_squashfuse_spec.py"),
    # They share measurements, which are made once.
    "scale": ("scale",),
}
# What takes longest begins first. Of the first two portions that a worker is given the second one waits for the first:
# so those are small.
FIRST = ("cluster", "clusters", "images", "unit/base", "packages", "scale")
# Who waits for clusters goes before who computes.
CHAINS = ("gw0", "gw1")


# Run one after the other when all others are through: they measure how fast nodes talk to each other, signal every
# process of nobody's that they see, count the machine's devices, emulate a machine, or have nodes judged by what else
# runs here.
ALONE = (
    "vet/test_links.py",
    "vet/test_meetings.py",
    "unit/node/test_endings.py",
    "kernels",
    "cluster/test_vet_examples.py",
    "cluster/test_vet_inside.py",
)

# How long an example of hypothesis takes says more of the machine than of the code.
settings.register_profile("piolet", deadline=None)
settings.load_profile("piolet")


def group_of(path: Path) -> str:
    """Return the group of a file of tests; one that is free is a group of its own, for what its tests share."""
    for name, places in GROUPS.items():
        if any(path.is_relative_to(TESTS / place) for place in places):
            return name
    return str(path.relative_to(TESTS).with_suffix(""))


def turn(path: Path) -> int:
    """Return a number that is the smaller the sooner a file's tests begin."""
    name = group_of(path)
    return next((place for place, first in enumerate(FIRST) if f"{name}/".startswith(f"{first}/")), len(FIRST))


def pytest_configure() -> None:
    """Begin the run, or take part in it."""
    once.begin()
    if os.environ.get("PYTEST_XDIST_WORKER", "gw0") not in CHAINS:
        os.nice(5)


def pytest_unconfigure() -> None:
    """End it."""
    once.end()


def is_alone(path: Path) -> bool:
    """Return whether tests run when all others are through."""
    return any(path.is_relative_to(TESTS / place) for place in ALONE)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not read the other pass's files: reading all takes twelve seconds."""
    wanted = {"alone": True, "not alone": False}.get(config.option.markexpr)
    if wanted is None or collection_path.is_dir() or not collection_path.name.startswith("test_"):
        return None
    return True if is_alone(collection_path) != wanted else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark those that run alone, and the tests of each group for pytest-xdist, where that is installed."""
    for item in items:
        if is_alone(item.path):
            item.add_marker(pytest.mark.alone)
    if config.pluginmanager.hasplugin("xdist"):
        items.sort(key=lambda item: turn(item.path))
        for item in items:
            item.add_marker(pytest.mark.xdist_group(group_of(item.path)))
