"""The id maps of a container's user namespace, which the monitor writes: one user, and the groups that are theirs."""

from __future__ import annotations

import os

from piolet.node.requests import Announced
from piolet.system.children import Child

_BYTES_MAX = 4000  # the kernel takes less than a page
_LINES_MAX = 340


def write(child: Child, who: Announced, *, as_root: bool) -> None:
    """Write the maps of the namespace that `child` has made; `as_root`: the user is root in there. Raises OSError.

    With the supplementary groups mapped, the user sees them by name; setgroups stays denied, so that a group that
    takes access away cannot be dropped.
    """
    child.write_map("uid_map", [(0 if as_root else who.uid, who.uid)])
    denied = child.open("setgroups", os.O_WRONLY)
    try:
        os.write(denied, b"deny")
    finally:
        os.close(denied)
    pairs: list[tuple[int, int]] = []
    size = 0
    for group in dict.fromkeys([who.gid, *(group for group in who.groups if group or not as_root)]):
        size += len(f"{group} {group} 1\n")
        if size < _BYTES_MAX and len(pairs) < _LINES_MAX:
            pairs.append((0 if as_root and not pairs else group, group))
    child.write_map("gid_map", pairs)
