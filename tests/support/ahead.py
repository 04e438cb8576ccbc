"""What tests would make first, made before they begin: `python -m tests.support.ahead clusters|machines`.

`make test` has it beside the linters and behind them, as each of these is work for one core. Whatever fails here the
tests say, or are left out.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from tools import machines, rpm
from tools.cluster import image, packages
from tools.cluster.errors import ClusterError

BUILD = Path(__file__).resolve().parents[2] / "build"
# Debian with what installs packages there (tests/cluster/test_remap_root.py).
INSTALLERS = (*image.PACKAGES, "apt", "adduser", "rpm", "libcap2-bin")


def for_clusters() -> None:
    """Make the images of private clusters."""
    for wanted in (image.PACKAGES, INSTALLERS):
        image.ensure(BUILD / "cache", lambda _: None, packages=wanted)


def for_machines() -> None:
    """Make the root of machines that systemd boots, and fetch the wheels of the packages that they install."""
    machines.base(BUILD.resolve() / "cache")
    rpm.fetch(BUILD.resolve() / "wheels")


def main(what: str) -> None:
    """Make it, if this is a machine for tests of clusters."""
    with contextlib.suppress(ClusterError, rpm.RpmError):
        packages.require_root()
        packages.ensure(lambda _: None)
        {"clusters": for_clusters, "machines": for_machines}[what]()


if __name__ == "__main__":
    main(*sys.argv[1:])
