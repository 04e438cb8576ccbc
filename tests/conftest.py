"""Which tests may run beside each other (`make test`): those of one group are run one after the other.

A group is for what a machine has once. All other tests are free; they use files, ports, users and names of their own.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

from tests.support import once

TESTS = Path(__file__).parent
GROUPS = {
    # Clusters: their accounts and the processes of those, whom an attack may kill; the machine's loop devices and
    # devices of device mapper, which are counted; /dev, /sys and /tmp, which steps are shown.
    "cluster": (
        "attacks",
        "cluster",
        "kernels",
        "packaging/test_guide.py",
        "packaging/test_rpm_cluster.py",
        "unit/node/test_imagemounts.py",
        "unit/node/test_mounts.py",
        "unit/tools",
    ),
    # Two users and the account of a service, by number; hostile programs run as each of them.
    "images": ("images",),
    # They share packages, which tests of clusters need, too: built at the same time, so that those come to them late.
    "packages": ("packaging/test_rpm.py", "packaging/test_rpm_install.py", "packaging/test_squashfuse_spec.py"),
    # They share measurements, which are made once.
    "scale": ("scale",),
}


# Run one after the other when all others are through: they measure how fast nodes talk to each other, signal every
# process of nobody's that they see, emulate a machine, or have nodes judged by what else runs on this machine.
ALONE = (
    "vet/test_links.py",
    "vet/test_meetings.py",
    "unit/node/test_endings.py",
    "kernels/test_boot.py",
    "cluster/test_vet_examples.py",
)

# How long an example of hypothesis takes says more of the machine than of the code.
settings.register_profile("piolet", deadline=None)
settings.load_profile("piolet")


def group_of(path: Path) -> str | None:
    """Return the group of a file of tests; None: it is free."""
    for name, places in GROUPS.items():
        if any(path.is_relative_to(TESTS / place) for place in places):
            return name
    return None


def pytest_configure() -> None:
    """Begin the run, or take part in it."""
    once.begin()


def pytest_unconfigure() -> None:
    """End it."""
    once.end()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark those that run alone, and the tests of each group for pytest-xdist, where that is installed."""
    for item in items:
        if any(item.path.is_relative_to(TESTS / place) for place in ALONE):
            item.add_marker(pytest.mark.alone)
    if not config.pluginmanager.hasplugin("xdist"):
        return
    for item in items:
        name = group_of(item.path)
        if name is not None:
            item.add_marker(pytest.mark.xdist_group(name))
