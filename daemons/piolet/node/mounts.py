"""The images that this node has mounted, and their views mapped to a user.

Root's part of an image: a SquashFS file of the site's store is mounted once per node and digest, in a mount
namespace that no process but the monitor is in, and where it ends with the monitor. Each container gets a
detached copy in which the image's root is the job's user (an idmapped mount). Before the kernel reads a file for the
first time, it is read once to see whether it is what the image service wrote.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import mmap
import os
import socket
from dataclasses import dataclass

from piolet.node import children, linux, loop
from piolet.node.children import Child

_USER_NS_MAX = 256
_USER_NS_S = 5.0
_PIECE = 1 << 20
_RECORD_MAX = 8 << 20

_DAMAGED = "its file in the store may be damaged: see piolet image verify; an administrator may piolet image rm DIGEST"
_ALTERED = "an administrator looks into it, and has it made again: piolet image verify; piolet image rm DIGEST"
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
    if code == errno.EBADMSG:
        return "its file is not what the image service has written", _ALTERED
    return os.strerror(code), _HINTS.get(code, "the node may lack loop devices (/dev/loop-control) or SquashFS")


@dataclass
class MountedImage:
    """One mounted image; `identity` is as in `identity_of`."""

    path: str
    identity: list[int]
    last_used: float


@dataclass
class Mounting:
    """A child that mounts an image at `path`; `seen` counts the bytes of its file that it has read before."""

    child: Child
    path: str
    identity: list[int]
    seen: mmap.mmap

    @property
    def doing(self) -> str:
        """What the child does, for those who wait."""
        done = int.from_bytes(self.seen[:8], "little")
        size = self.identity[2]
        return f"read to check it: {done >> 20} of {size >> 20} MiB" if 0 < done < size else "mounted"


def identity_of(status: os.stat_result) -> list[int]:
    """Return what tells one file from another that has taken its place, or from itself before it was changed."""
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


class Images:
    """Mounts images of `store`, whose files belong to `owner`, below the directory `base`; `verify` as in [images]."""

    def __init__(self, store: str, owner: int, base: str, verify: str = "first") -> None:
        self._store = store
        self._owner = owner
        self._base = base
        self._verify = verify
        self._mounted: dict[str, MountedImage] = {}
        self._verified: dict[str, list[int]] = {}
        self._user_ns: dict[tuple[int, int], int] = {}
        self._made = 0

    def lookup(self, digest: str, identity: list[int], now: float) -> MountedImage | None:
        """Return the image if it is mounted from the file with this identity."""
        image = self._mounted.get(digest)
        if image is None or image.identity != identity:
            return None
        image.last_used = now
        return image

    def start_mount(self, digest: str, identity: list[int]) -> Mounting:
        """Start mounting in a child, since a hung store must not hang the monitor. It exits with 0, or with an errno.

        Raises OSError: there is no child to be had.
        """
        self._made += 1
        target = f"{self._base}/{digest[7:19]}-{self._made}"
        os.mkdir(target)
        seen = mmap.mmap(-1, mmap.PAGESIZE)
        try:
            child = children.fork(set())
        except OSError:
            os.rmdir(target)
            raise
        if child is not None:
            return Mounting(child, target, identity, seen)
        code = errno.EIO
        try:
            check = self._verify == "always" or (self._verify == "first" and self._verified.get(digest) != identity)
            code = self._mount(f"{self._store}/{digest.replace(':', '-')}", identity, target, seen if check else None)
        finally:
            os._exit(code)

    def _mount(self, path: str, identity: list[int], target: str, seen: mmap.mmap | None) -> int:
        try:
            # The owner opens it: on a file system that squashes root, root could not.
            os.seteuid(self._owner)
            image = os.open(f"{path}.sqsh", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            status = os.fstat(image)
            if identity_of(status) != identity:
                return errno.ESTALE
            if status.st_uid != self._owner or status.st_mode & 0o022:
                return errno.EPERM
            recorded = None if seen is None else _recorded(f"{path}.json")
            if seen is not None and recorded is not None and _sha256(image, seen) != recorded:
                return errno.EBADMSG
            if identity_of(os.fstat(image)) != identity:
                return errno.ESTALE  # it was written to meanwhile
            os.seteuid(0)
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
        self._verified[digest] = identity

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
            linux.set_mount_attributes(tree, 0, user_ns=self._namespace(uid, gid), recursive=False)
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

    def _namespace(self, uid: int, gid: int) -> int:
        """Return a user namespace that maps 0 on disk to this user; cached, since making one costs a fork."""
        known = self._user_ns.get((uid, gid))
        if known is not None:
            return known
        while len(self._user_ns) >= _USER_NS_MAX:
            os.close(self._user_ns.pop(next(iter(self._user_ns))))
        made = _make_user_namespace(uid, gid)
        self._user_ns[(uid, gid)] = made
        return made


def _make_user_namespace(uid: int, gid: int) -> int:
    """Make a user namespace by a child that is root, so that no user can hold it up; the wait is short, and bounded."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        child = children.fork({theirs.fileno()})
        if child is None:
            try:
                linux.unshare(linux.CLONE_NEWUSER)
                theirs.send(b"1")
                theirs.recv(1)
            finally:
                os._exit(0)
        theirs.close()
        ours.settimeout(_USER_NS_S)
        try:
            if ours.recv(1) != b"1":
                raise OSError(errno.EPERM, "no user namespace to be had", "unshare")
            child.write_map("uid_map", [(0, uid)])
            child.write_map("gid_map", [(0, gid)])
            return child.open("ns/user")
        except TimeoutError:
            raise OSError(errno.EPERM, "no user namespace to be had", "unshare") from None
        finally:
            child.kill()
            child.wait()


def _recorded(path: str) -> str | None:
    """Return the SHA-256 that the image service has recorded, or None: the store is older than these records."""
    with open(path, "rb") as file:
        try:
            value = json.loads(file.read(_RECORD_MAX))
            return value["sha256"] if isinstance(value["sha256"], str) else None
        except (ValueError, RecursionError, LookupError, TypeError):
            return None


def _sha256(image: int, seen: mmap.mmap) -> str:
    """Return the digest of the file; `seen` is told how much of it was read. Later reads come from the page cache."""
    digest, done = hashlib.sha256(), 0
    while piece := os.pread(image, _PIECE, done):
        digest.update(piece)
        done += len(piece)
        seen[:8] = done.to_bytes(8, "little")
    return digest.hexdigest()
