"""A file of the store as if it were a user's own: what squashfuse, which knows paths only, can open as that user.

The file itself belongs to the image service and is nobody else's to open, not even by way of /proc/self/fd. So it is
shown by an overlay in which its owner is the user: a copy of its metadata alone, in a tmpfs, over the data where it is
(metacopy). That is in a mount namespace which ends at once; what stays is an open file, read-only, from which nothing
else can be reached.
"""

from __future__ import annotations

import os

from piolet.system import linux

_FLAGS = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC


def open_for(directory: str, name: str, owner: int, user: tuple[int, int], place: str) -> int:
    """Return a descriptor of the file `name` in `directory`, which is its `owner`'s, as a file of `user` (uid, gid).

    place  an empty directory, used in a mount namespace of this process's own, which it is in from then on

    Call it as root, in a process that does nothing else afterwards. Raises OSError.
    """
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
    linux.mount("piolet", place, "tmpfs", _FLAGS, "mode=0700,size=1m")
    for made in ("upper", "work", "shown"):
        os.mkdir(f"{place}/{made}")
    # The overlay reads as whoever mounts it: with root's capabilities, and as the owner where root would be squashed.
    linux.keep_capabilities()
    os.seteuid(owner)
    lower = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    options = f"lowerdir=/proc/self/fd/{lower},upperdir={place}/upper,workdir={place}/work,metacopy=on,redirect_dir=on"
    shown = f"{place}/shown"
    linux.mount("piolet", shown, "overlay", _FLAGS, options)
    os.chown(f"{shown}/{name}", *user, follow_symlinks=False)
    os.chmod(f"{shown}/{name}", 0o400)
    tree = linux.clone_tree(shown, recursive=False)
    linux.set_mount_attributes(tree, linux.MOUNT_ATTR_RDONLY)
    return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=tree)
