"""What a container has in which the user is root (`remap_root`, decision 83): the worker's half."""

from __future__ import annotations

import contextlib

from piolet.base.errors import ContainerError
from piolet.system import pretendroot

FILTER = "/run/piolet/filter"
"""What the entry program (spank/entry.c) puts on tasks."""
# As root apt becomes another user for downloads, and does not take it that it did not.
APT_SETTINGS, APT_TEXT = "/etc/apt/apt.conf.d/99piolet", 'APT::Sandbox::User "root";\n'


def write() -> None:
    """Write it into the root that this process has, where nothing may be mounted yet. Raises ContainerError."""
    try:
        with open(FILTER, "wb") as file:
            file.write(pretendroot.program())
        with contextlib.suppress(FileNotFoundError), open(APT_SETTINGS, "w", encoding="ascii") as text:
            text.write(APT_TEXT)
    except OSError as error:
        raise ContainerError(f"cannot write {error.filename} in the container: {error.strerror}") from None
