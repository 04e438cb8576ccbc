"""The images that this node has mounted, and what a user's container gets of them.

Root's part of an image: a SquashFS file of the site's store is mounted once per node and digest, in a mount
namespace that no process but the monitor is in, and where it ends with the monitor. Each container gets a
detached copy in which the image's root is the job's user (an idmapped mount). Where the kernel has no such mounts
(imagemounts.py), there is one mount for each user, or an open file that the user's own squashfuse serves. Before a
file is used for the first time, it is read once to see whether it is what the image service wrote.
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

from piolet.base.files import identity_of
from piolet.node.root import ownfile
from piolet.node.root.devicemapper import DeviceMapper
from piolet.node.root.imagemounts import DEVICE_MAPPER, FUSE, IDMAP, Choice
from piolet.system import children, linux, loop
from piolet.system.children import Child
from piolet.system.usernamespaces import IdMaps
from piolet.transport import packets

_PIECE = 1 << 20
_RECORD_MAX = 8 << 20

_DAMAGED = "its file in the store may be damaged: see piolet image verify; an administrator may piolet image rm DIGEST"
_ALTERED = "an administrator looks into it, and has it made again: piolet image verify; piolet image rm DIGEST"
_OLD = "have it converted again: piolet image prune --old-format, by an administrator if the image is public"
_NOT_THE_STORES = "the files of the store must belong to the account of the image service, and only it may write them"
_HINTS = {
    errno.EINVAL: _DAMAGED,
    errno.EIO: _DAMAGED,
    errno.EUCLEAN: _DAMAGED,
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
    if code == errno.EOVERFLOW:
        return "it was converted by an earlier release, and this node's kernel cannot give it to your group", _OLD
    return os.strerror(code), _HINTS.get(code, "the node may lack loop devices (/dev/loop-control) or SquashFS")


@dataclass(frozen=True)
class WantedImage:
    """An image of the store, as the file with this identity (`identity_of`), and the user who is to have it."""

    digest: str
    identity: list[int]
    uid: int
    gid: int


@dataclass
class MountedImage:
    """An image that is mounted at `path`, or whose open file is `file`; for one user, or by idmapped mounts for all."""

    wanted: WantedImage
    path: str
    file: int | None
    last_used: float


@dataclass(frozen=True)
class View:
    """What a container gets: the descriptor of a detached mount, or of the image's file for squashfuse to serve."""

    descriptor: int
    is_file: bool


@dataclass
class Mounting:
    """A child that mounts an image at `path`; `seen` counts the bytes of its file that it has read before.

    `channel` is where the file comes from, if it is one for squashfuse.
    """

    wanted: WantedImage
    way: str
    child: Child
    path: str
    seen: mmap.mmap
    channel: socket.socket

    @property
    def doing(self) -> str:
        """What the child does, for those who wait."""
        done = int.from_bytes(self.seen[:8], "little")
        size = self.wanted.identity[2]
        return f"read to check it: {done >> 20} of {size >> 20} MiB" if 0 < done < size else "mounted"


class Images:
    """Mounts images of `store`, whose files belong to `owner`, below the directory `base`.

    choice   how this kernel gives them to users
    mapper   makes views, where that is the way
    views    how many users have a view of one image; more are served by squashfuse, where it is there
    verify   as in [images]
    """

    def __init__(
        self, store: str, owner: int, base: str, choice: Choice, mapper: DeviceMapper, views: int, verify: str = "first"
    ) -> None:
        self._store = store
        self._owner = owner
        self._base = base
        self._choice = choice
        self._mapper = mapper
        self._views = views
        self._verify = verify
        self._mounted: dict[tuple[str, int, int], MountedImage] = {}
        self._verified: dict[str, list[int]] = {}
        self._id_maps = IdMaps()
        self._coming: list[Mounting] = []
        self._made = 0

    def refusal(self, of_the_store: bool) -> tuple[str, str] | None:
        """Return why no container, or none with an image of the store, can be built here, and a hint; or None."""
        if self._choice.refusal or (of_the_store and not self._choice.way):
            return self._choice.describe(), self._choice.hint
        return None

    @property
    def rooted(self) -> bool:
        """Whether the overlay on a mounted image is root's to mount."""
        return self._choice.rooted

    @property
    def helped(self) -> bool:
        """Whether workers make their user namespaces with CAP_SYS_ADMIN."""
        return self._choice.helped

    def key(self, wanted: WantedImage) -> tuple[str, int, int]:
        """Return what those have in common whom one mount serves."""
        if self._choice.way == IDMAP:
            return wanted.digest, -1, -1
        return wanted.digest, wanted.uid, wanted.gid

    def lookup(self, wanted: WantedImage, now: float) -> MountedImage | None:
        """Return the image if it is there for this user, from the file with this identity."""
        image = self._mounted.get(self.key(wanted))
        if image is None or image.wanted.identity != wanted.identity:
            return None
        image.last_used = now
        return image

    def start_mount(self, wanted: WantedImage) -> Mounting:
        """Start mounting in a child, since a hung store must not hang the monitor. It exits with 0, or with an errno.

        Raises OSError: there is no child to be had.
        """
        self._made += 1
        target = f"{self._base}/{wanted.digest[7:19]}-{self._made}"
        way = self._way(wanted.digest)
        seen = mmap.mmap(-1, mmap.PAGESIZE)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            os.mkdir(target)
            try:
                child = children.fork({theirs.fileno()})
            except OSError:
                ours.close()
                os.rmdir(target)
                raise
            if child is not None:
                mounting = Mounting(wanted, way, child, target, seen, ours)
                self._coming.append(mounting)
                return mounting
            code = errno.EIO
            try:
                first = self._verified.get(wanted.digest) != wanted.identity
                check = self._verify == "always" or (self._verify == "first" and first)
                code = self._mount(wanted, way, target, seen if check else None, theirs)
            finally:
                os._exit(code)

    def _way(self, digest: str) -> str:
        if self._choice.way != DEVICE_MAPPER or not self._choice.fuse:
            return self._choice.way
        there = sum(1 for key, image in self._mounted.items() if key[0] == digest and image.file is None)
        coming = sum(1 for one in self._coming if one.wanted.digest == digest and one.way == DEVICE_MAPPER)
        return FUSE if there + coming >= self._views else DEVICE_MAPPER

    def _mount(self, wanted: WantedImage, way: str, target: str, seen: mmap.mmap | None, monitor: socket.socket) -> int:
        path = f"{self._store}/{wanted.digest.replace(':', '-')}"
        try:
            # The owner opens it: on a file system that squashes root, root could not.
            os.seteuid(self._owner)
            image = os.open(f"{path}.sqsh", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            status = os.fstat(image)
            if identity_of(status) != wanted.identity:
                return errno.ESTALE
            if status.st_uid != self._owner or status.st_mode & 0o022:
                return errno.EPERM
            recorded = None if seen is None else _recorded(f"{path}.json")
            if seen is not None and recorded is not None and _sha256(image, seen) != recorded:
                # The record may be of a file that has taken this one's place meanwhile.
                return errno.EBADMSG if identity_of(os.stat(f"{path}.sqsh")) == wanted.identity else errno.ESTALE
            if identity_of(os.fstat(image)) != wanted.identity:
                return errno.ESTALE  # it was written to meanwhile
            os.seteuid(0)
            if way == IDMAP:
                loop.mount_image(image, target)
            elif way == FUSE or not self._make_view(image, wanted, target):
                name = os.path.basename(f"{path}.sqsh")
                file = ownfile.open_for(self._store, name, self._owner, (wanted.uid, wanted.gid), target)
                if identity_of(os.stat(f"{path}.sqsh")) != wanted.identity:
                    return errno.ESTALE
                packets.send(monitor, b"file", [file])
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    def _make_view(self, image: int, wanted: WantedImage, target: str) -> bool:
        """Mount a view; return False where the image is an old one, which only squashfuse can give to this user."""
        try:
            self._mapper.mount_view(image, {0: wanted.uid, 1: wanted.gid}, target)
        except OSError as error:
            if error.errno == errno.EOVERFLOW and self._choice.fuse:
                return False
            raise
        return True

    def mounted(self, mounting: Mounting, now: float) -> None:
        """Note that a mount that `start_mount` began has succeeded."""
        self._coming.remove(mounting)
        files: list[int] = []
        with mounting.channel, contextlib.suppress(OSError):
            files = packets.receive(mounting.channel, 16, 1, socket.MSG_DONTWAIT).descriptors
        if files:
            os.rmdir(mounting.path)
        key = self.key(mounting.wanted)
        old = self._mounted.pop(key, None)
        if old is not None:
            self._drop(old)
        self._mounted[key] = MountedImage(mounting.wanted, mounting.path, files[0] if files else None, now)
        self._verified[mounting.wanted.digest] = mounting.wanted.identity

    def failed(self, mounting: Mounting) -> None:
        """Note that a mount that `start_mount` began has failed."""
        self._coming.remove(mounting)
        mounting.channel.close()
        with contextlib.suppress(OSError):
            linux.umount(mounting.path)  # it was mounted, and its child killed before it could say so
        with contextlib.suppress(OSError):
            os.rmdir(mounting.path)

    def view(self, image: MountedImage, wanted: WantedImage) -> View:
        """Return what a container of this user gets of the image; the descriptor is the caller's. Raises OSError."""
        if image.file is not None:
            return View(os.dup(image.file), True)
        tree = linux.clone_tree(image.path, recursive=False)
        if self._choice.way == IDMAP:
            try:
                # Group 1 on disk, or 0 in an image that an older release wrote: its root has what all files have.
                namespace = self._id_maps.get(wanted.uid, wanted.gid, os.fstat(tree).st_gid)
                linux.set_mount_attributes(tree, 0, user_ns=namespace, recursive=False)
            except OSError:
                os.close(tree)
                raise
        return View(tree, False)

    def expire(self, older_than: float) -> None:
        """Let go of what was last used before `older_than`; running containers keep their copies."""
        for key in [key for key, image in self._mounted.items() if image.last_used < older_than]:
            self._drop(self._mounted.pop(key))

    def _drop(self, image: MountedImage) -> None:
        if image.file is not None:
            os.close(image.file)
            return
        with contextlib.suppress(OSError):
            linux.umount(image.path)
            os.rmdir(image.path)


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
