"""What tests would make first, made before they begin: `python -m tests.support.ahead roots|wheels`.

`make test` makes the roots beside all else that comes before the tests, with the system's Python, and then the wheels.
Whatever fails here the tests say, or are left out.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from tools import machines, rpm
from tools.cluster import image, packages
from tools.cluster.errors import ClusterError

BUILD = (Path(__file__).resolve().parents[2] / "build").resolve()
# Debian with what installs packages there (tests/cluster/test_remap_root.py).
INSTALLERS = (*image.PACKAGES, "apt", "adduser", "rpm", "libcap2-bin")


def roots() -> None:
    """Make the images of private clusters, and the root of machines that systemd boots."""
    packages.ensure(lambda _: None)
    for wanted in (image.PACKAGES, INSTALLERS):
        image.ensure(BUILD / "cache", lambda _: None, packages=wanted)
    machines.base(BUILD / "cache")


def wheels() -> None:
    """Fetch what the packages hold, for this Python."""
    rpm.fetch(BUILD / "wheels")


def main(what: str) -> None:
    """Make it, if this is a machine for tests of clusters."""
    with contextlib.suppress(ClusterError, rpm.RpmError):
        packages.require_root()
        {"roots": roots, "wheels": wheels}[what]()


if __name__ == "__main__":
    main(*sys.argv[1:])
