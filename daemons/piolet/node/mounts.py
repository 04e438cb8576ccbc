"""The images that this node has mounted, and their views mapped to a user.

Root's part of an image: a SquashFS file of the site's store is mounted once per node and digest, in the
monitor's own mount namespace, where no other process sees it and where it ends with the monitor. Each
container gets a detached copy in which the image's root is the job's user (an idmapped mount).
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
from dataclasses import dataclass

from piolet.node import linux, loop

_USER_NS_MAX = 256
_USER_NS_S = 5.0

_DAMAGED = "its file in the store may be damaged; remove it and start again: piolet image rm REFERENCE"
_NOT_THE_STORES = "the files of the store must belong to the account of the image service, and only it may write them"
_HINTS = {
    errno.EINVAL: _DAMAGED,
    errno.EIO: _DAMAGED,
    errno.EPERM: _NOT_THE_STORES,
    errno.EACCES: _NOT_THE_STORES,
    errno.ENOENT: "start the step again: the image may have been removed just now",
}


def explain(code: int) -> tuple[str, str]:
    """Return what the exit status of a child of `start_mount` means, and a hint."""
    if code <= 0:
        return "it took too long", "is the file system of the store hung?"
    if code == errno.ESTALE:
        return "it was replaced just now", "start the step again"
    return os.strerror(code), _HINTS.get(code, "the node may lack loop devices (/dev/loop-control) or SquashFS")


@dataclass
class MountedImage:
    """One mounted image; `identity` is device, inode and size of its file."""

    path: str
    identity: list[int]
    last_used: float


class Images:
    """Mounts images of `store`, whose files belong to `owner`, below the directory `base`."""

    def __init__(self, store: str, owner: int, base: str) -> None:
        self._store = store
        self._owner = owner
        self._base = base
        self._mounted: dict[str, MountedImage] = {}
        self._user_ns: dict[tuple[int, int, int], int] = {}
        self._made = 0

    def lookup(self, digest: str, identity: list[int], now: float) -> MountedImage | None:
        """Return the image if it is mounted from the file with this identity."""
        image = self._mounted.get(digest)
        if image is None or image.identity != identity:
            return None
        image.last_used = now
        return image

    def start_mount(self, digest: str, identity: list[int]) -> tuple[int, str]:
        """Start mounting in a child, since a hung store must not hang the monitor; return its pid and the path.

        The child exits with 0, or with an errno.
        """
        self._made += 1
        target = f"{self._base}/{digest[7:19]}-{self._made}"
        os.mkdir(target)
        pid = os.fork()
        if pid:
            return pid, target
        code = errno.EIO
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            linux.die_with_parent(signal.SIGKILL)
            code = self._mount(f"{self._store}/{digest.replace(':', '-')}.sqsh", identity, target)
        finally:
            os._exit(code)

    def _mount(self, path: str, identity: list[int], target: str) -> int:
        try:
            # The owner opens it: on a file system that squashes root, root could not.
            os.seteuid(self._owner)
            image = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            os.seteuid(0)
            status = os.fstat(image)
            if [status.st_dev, status.st_ino, status.st_size] != identity:
                return errno.ESTALE
            if status.st_uid != self._owner or status.st_mode & 0o022:
                return errno.EPERM
            loop.mount_image(image, target)
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    def mounted(self, digest: str, identity: list[int], path: str, now: float) -> None:
        """Note that a mount that `start_mount` began has succeeded."""
        old = self._mounted.pop(digest, None)
        if old is not None:
            self._umount(old)
        self._mounted[digest] = MountedImage(path, identity, now)

    def failed(self, path: str) -> None:
        """Note that a mount that `start_mount` began has failed."""
        with contextlib.suppress(OSError):
            linux.umount(path)  # it was mounted, and its child killed before it could say so
        with contextlib.suppress(OSError):
            os.rmdir(path)

    def view(self, image: MountedImage, uid: int, gid: int) -> int:
        """Return a detached copy of the image, its root's files belonging to `uid` and `gid`."""
        tree = linux.clone_tree(image.path, recursive=False)
        try:
            # Group 1 on disk, or 0 in an image that an older release wrote: its root directory has what all have.
            group = os.fstat(tree).st_gid
            linux.set_mount_attributes(tree, 0, user_ns=self._namespace(uid, gid, group), recursive=False)
        except OSError:
            os.close(tree)
            raise
        return tree

    def expire(self, older_than: float) -> None:
        """Unmount what was last used before `older_than`; running containers keep their copies."""
        for digest in [d for d, image in self._mounted.items() if image.last_used < older_than]:
            self._umount(self._mounted.pop(digest))

    def _umount(self, image: MountedImage) -> None:
        try:
            linux.umount(image.path)
            os.rmdir(image.path)
        except OSError:
            pass

    def _namespace(self, uid: int, gid: int, group: int) -> int:
        """Return a namespace that maps uid 0 and gid `group` on disk to this user; cached, since it costs a fork."""
        known = self._user_ns.get((uid, gid, group))
        if known is not None:
            return known
        while len(self._user_ns) >= _USER_NS_MAX:
            os.close(self._user_ns.pop(next(iter(self._user_ns))))
        made = _make_user_namespace(uid, gid, group)
        self._user_ns[(uid, gid, group)] = made
        return made


def _make_user_namespace(uid: int, gid: int, group: int) -> int:
    """Make a user namespace by a child that is root, so that no user can hold it up; the wait is short, and bounded."""
    ready_read, ready_write = os.pipe()
    hold_read, hold_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(hold_write)
            linux.unshare(linux.CLONE_NEWUSER)
            os.write(ready_write, b"1")
            os.read(hold_read, 1)
        finally:
            os._exit(0)
    os.close(ready_write)
    os.close(hold_read)
    try:
        if not select.select([ready_read], [], [], _USER_NS_S)[0] or os.read(ready_read, 1) != b"1":
            raise OSError(errno.EPERM, "no user namespace to be had", "unshare")
        write_map(pid, "uid_map", [(0, uid)])
        write_map(pid, "gid_map", [(group, gid)])
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(hold_write)
        os.close(ready_read)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def write_map(pid: int, name: str, pairs: list[tuple[int, int]]) -> None:
    """Write single-id mappings (inside, outside) into /proc/PID/uid_map or gid_map, in one write as it must be."""
    descriptor = os.open(f"/proc/{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, "".join(f"{inside} {outside} 1\n" for inside, outside in pairs).encode())
    finally:
        os.close(descriptor)
