"""Which tests may run beside each other (`make test`): those of one group are run one after the other.

A group is for what a machine has once. All other tests are free; they use files, ports, users and names of their own.
Workers see the processes of their own tests only (tests/worker).
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support import once

TESTS = Path(__file__).parent
# Clusters of their own, one after the other, beside those that tests share. All have the same accounts: an attack that
# kills all processes of a user's finds those of its own worker.
_OWN = (
    "attacks",
    "cluster/test_accounting.py",
    "cluster/test_central.py",
    "cluster/test_confined.py",
    "cluster/test_hardened.py",
    "cluster/test_private_tmp.py",
    "packaging/test_guide.py",
    "packaging/test_rpm_cluster.py",
)
# What shares a cluster does so in two workers, each of which has one: these files take half of the time.
_HALF = tuple(f"cluster/{path.name}" for path in (TESTS / "cluster").glob("test_[a-i]*.py"))
GROUPS = {
    "clusters": _OWN,
    "shared-1": _HALF,
    "shared-2": ("cluster", "unit/node/test_imagemounts.py", "unit/node/test_mounts.py", "unit/tools"),
    # They share packages, which tests of clusters need, too.
    "packages": ("packaging/test_rpm.py", "packaging/test_rpm_install.py", "packaging/test_squashfuse_spec.py"),
    # They share measurements, which are made once.
    "scale": ("scale",),
    # Two users and the account of a service, by number; without root, workers see each other's processes.
    **({} if os.geteuid() == 0 else {"images": ("images",)}),
}
# What takes longest begins first, and the packages before the cluster that wants them. A worker whose portion has two
# tests at most is given the next one as well, which waits for the first: behind such a one stands what is short.
FIRST = (
    *("clusters", "shared-1", "shared-2", "packages", "kernels/test_boot", "structure"),
    *("images", "scale", "central", "score", "vet"),
)
# Who waits for clusters goes before who computes.
CHAINS = ("clusters", "shared-1", "shared-2")
NICE = os.getpriority(os.PRIO_PROCESS, 0)
# Run one after the other when all others are through: they measure how fast nodes talk to each other, signal every
# process of nobody's that they see, count the machine's devices, or have nodes judged by what else runs here.
ALONE = (
    "vet/test_links.py",
    "vet/test_meetings.py",
    "unit/node/test_endings.py",
    "kernels/test_devicemapper.py",
    "cluster/test_vet_examples.py",
    "cluster/test_vet_inside.py",
)

# How long an example of hypothesis takes says more of the machine than of the code.
settings.register_profile("piolet", deadline=None)
settings.load_profile("piolet")


@functools.cache
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


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection() -> Generator[None, object, object]:
    """Look for no garbage while tests are read, as none of them goes, and not among them afterwards (decision 180)."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_unconfigure() -> None:
    """End it."""
    once.end()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> None:
    """Give way to tests of other workers, or not. Which of them has which group is a matter of who was ready first."""
    behind = "PYTEST_XDIST_WORKER" in os.environ and group_of(item.path) not in CHAINS
    if os.getpriority(os.PRIO_PROCESS, 0) != NICE + 5 * behind:
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, NICE + 5 * behind)


@functools.cache
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
