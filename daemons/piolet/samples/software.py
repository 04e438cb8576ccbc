"""What a node runs that its figures may depend on."""

from __future__ import annotations

import contextlib
import os

from piolet.base import files


def software(top: str = "/") -> dict[str, str]:
    """Return the versions of the node's kernel and, where it is loaded, of NVIDIA's driver."""
    found = {"kernel": os.uname().release}
    with contextlib.suppress(OSError, files.NotRegularError):
        text = files.read_small(os.path.join(top, "sys/module/nvidia/version"), 64)[0].decode("ascii", "replace")
        found["driver"] = text.strip()
    return found
