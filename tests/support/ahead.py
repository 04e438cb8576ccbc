"""What tests of clusters would make first, made before they begin: `python -m tests.support.ahead`.

`make test` has it beside the linters, which leave a core alone. Whatever fails here the tests say, or are left out.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from tools.cluster import image, packages
from tools.cluster.errors import ClusterError

ROOT = Path(__file__).resolve().parents[2]
# Debian with what installs packages there (tests/cluster/test_remap_root.py).
INSTALLERS = (*image.PACKAGES, "apt", "adduser", "rpm", "libcap2-bin")


def main() -> None:
    """Make the images of private clusters."""
    cache = ROOT / "build" / "cache"
    with contextlib.suppress(ClusterError):
        packages.require_root()
        packages.ensure(lambda _: None)
        for wanted in (image.PACKAGES, INSTALLERS):
            image.ensure(cache, lambda _: None, packages=wanted)


if __name__ == "__main__":
    main()
