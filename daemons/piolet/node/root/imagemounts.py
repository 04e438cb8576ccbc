"""How this node's kernel gives an image of the store to a user: three ways, the first of which works is taken.

    idmap         an idmapped SquashFS mount: one mount for all users, Linux 6.2 or newer
    devicemapper  a view for each user (devicemapper.py): Linux 5.12 or newer with device mapper
    fuse          squashfuse as the user, on a descriptor of the file that root has opened

What works is tried, once, with a file system of 234 bytes, and not concluded from a version: RHEL 9 refuses idmapped
mounts with EPERM whatever its kernel calls itself, others with EINVAL or ENOSYS.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field

from piolet.base import files
from piolet.base.errors import WireError
from piolet.container import rootoverlay
from piolet.container.fuse import is_of_fuse_2
from piolet.node.root.devicemapper import DeviceMapper, tiny_image
from piolet.system import linux, loop, usernamespaces
from piolet.transport import packets

IDMAP, DEVICE_MAPPER, FUSE = "idmap", "devicemapper", "fuse"
WAYS = (IDMAP, DEVICE_MAPPER, FUSE)
FILE = "image-mounts"
"""Where in its directory of state pioletd notes what it found."""
AUTO = "auto"
_SOME_UID, _SOME_GID = 12345, 54321
_TRY_S = 20.0

_WORDS = {
    IDMAP: "idmapped SquashFS mounts",
    DEVICE_MAPPER: "views by device mapper",
    FUSE: "squashfuse",
}
_MEANING = {
    (IDMAP, errno.EINVAL): "this kernel has none (Linux 6.2 or newer has them)",
    (IDMAP, errno.EPERM): "this kernel refuses them, as RHEL 9's does",
    (IDMAP, errno.ENOSYS): "this kernel has none, or a filter of system calls hides them",
    (IDMAP, errno.ENODEV): "this kernel has no SquashFS (modprobe squashfs)",
    (DEVICE_MAPPER, errno.ENODEV): "this kernel has no device mapper (modprobe dm_mod), or no SquashFS",
    (DEVICE_MAPPER, errno.ENXIO): "this kernel has no device mapper (modprobe dm_mod)",
}


@dataclass(frozen=True)
class Choice:
    """What was found.

    way      one of WAYS, or '' where none works
    fuse     whether squashfuse can serve those for whom `way` cannot
    tried    why the ways before it do not work: way, and a clause
    refusal  why there are no containers at all on this node, or ''
    rooted   containers' overlays are root's to mount (rootoverlay.py)
    helped   users' namespaces are to be made with CAP_SYS_ADMIN (usernamespaces.py)
    hint     what an administrator does where nothing works
    """

    way: str
    fuse: bool = False
    tried: list[tuple[str, str]] = field(default_factory=list)
    refusal: str = ""
    hint: str = ""
    rooted: bool = False
    helped: bool = False

    def describe(self) -> str:
        """Return it in a sentence, for the log and for `piolet doctor`."""
        if self.refusal:
            return self.refusal
        why = "; ".join(f"{_WORDS[way]}: {clause}" for way, clause in self.tried)
        if not self.way:
            return f"images of the site's store cannot be mounted here: {why}"
        return f"images of the site's store are mounted by {_WORDS[self.way]}" + (f" ({why})" if why else "")


def too_old(release: str) -> Choice:
    """Return what is to be said of a kernel of this release that lacks mount_setattr."""
    refusal = f"Linux {release} is too old for containers: 5.12 is the oldest"
    return Choice("", refusal=refusal, hint="boot a newer kernel on the nodes")


def choose(wanted: str, base: str, mapper: DeviceMapper, squashfuse: str) -> Choice:
    """Try the ways, or the one that is `wanted` if it is not "auto".

    base  a directory in which to mount, in a mount namespace that no user's process is in

    Call it as root. It leaves nothing behind.
    """
    if not can_set_attributes():
        return too_old(os.uname().release)
    tries: dict[str, Callable[[str], OSError | None]] = {
        IDMAP: probe_idmap,
        DEVICE_MAPPER: mapper.probe,
        FUSE: lambda _: probe_fuse(squashfuse),
    }
    tried: list[tuple[str, str]] = []
    fuse = probe_fuse(squashfuse) is None
    with tempfile.TemporaryDirectory(dir=base) as target:
        rooted, helped = rootoverlay.is_needed(target), usernamespaces.needs_administrator()
        for way in WAYS if wanted == AUTO else (wanted,):
            error = tries[way](target)
            if error is None:
                return Choice(way, fuse, tried, rooted=rooted, helped=helped)
            tried.append((way, _clause(way, error)))
    hint = "any of these will do; on RHEL 9 and before Linux 6.2 device mapper is the fast one: modprobe dm_mod"
    if wanted != AUTO:
        hint = '[node] image_mounts = "auto" takes what works'
    return Choice("", fuse, tried, hint=hint, rooted=rooted, helped=helped)


def choose_apart(wanted: str, squashfuse: str) -> Choice | None:
    """Return what `choose` finds, tried by a child in a mount namespace of its own; None where it comes to nothing.

    For `piolet doctor`, where no pioletd has noted anything. Call it as root.
    """
    room = tempfile.gettempdir()
    answer, ours = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            linux.unshare(linux.CLONE_NEWNS)
            linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
            linux.mount("piolet", room, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=0700,size=1m")
            os.write(ours, packets.encode(choose(wanted, room, DeviceMapper("doctor"), squashfuse)))
        finally:
            os._exit(0)
    os.close(ours)
    with open(answer, "rb") as pipe:
        ended = os.pidfd_open(pid)
        if not select.select([ended], [], [], _TRY_S)[0]:
            os.kill(pid, signal.SIGKILL)
        os.close(ended)
        said = b"" if os.waitpid(pid, 0)[1] else pipe.read()
    return packets.decode(Choice, said) if said else None


def forget(state: str) -> None:
    """Remove what an earlier pioletd has noted. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(state, FILE))


def note(choice: Choice, state: str) -> None:
    """Write down what was found, where `piolet doctor` reads it. Raises OSError."""
    path = os.path.join(state, FILE)
    files.write_whole(path, packets.encode(choice), f"{path}.new", mode=0o644)


def noted(state: str) -> Choice | None:
    """Return what the pioletd that was started last has found, or None where none has noted it."""
    try:
        with open(os.path.join(state, FILE), "rb") as file:
            return packets.decode(Choice, file.read(1 << 16))
    except (OSError, WireError):
        return None


def _clause(way: str, error: OSError) -> str:
    if error.filename == "unshare":
        return "no user namespace to be had"
    known = _MEANING.get((way, error.errno or 0))
    return known or f"{error.strerror}" + (f" ({error.filename})" if error.filename else "")


def can_set_attributes() -> bool:
    """Return whether there is mount_setattr at all, without which no container is built. Anybody may ask."""
    try:
        linux.set_mount_attributes(-1, linux.MOUNT_ATTR_NOSUID)
    except OSError as error:
        return error.errno != errno.ENOSYS
    return True


def probe_idmap(target: str) -> OSError | None:
    """Try an idmapped mount of a tiny file system at the empty directory `target`; return what is in the way."""
    try:
        with contextlib.ExitStack() as stack:
            loop.mount_image(stack.enter_context(tiny_image()), target)
            stack.callback(linux.umount, target)
            tree = linux.clone_tree(target, recursive=False)
            stack.callback(os.close, tree)
            namespace = usernamespaces.make(_SOME_UID, _SOME_GID, 1)
            stack.callback(os.close, namespace)
            linux.set_mount_attributes(tree, 0, user_ns=namespace, recursive=False)
            status = os.stat("file", dir_fd=tree)
    except OSError as error:
        return error
    if (status.st_uid, status.st_gid) != (_SOME_UID, _SOME_GID):
        return OSError(errno.ENOTSUP, "the owners of files did not change", target)
    return None


def probe_fuse(squashfuse: str) -> OSError | None:
    """Return what is in the way of squashfuse for users: that it is not there, or its device."""
    if not os.access(squashfuse, os.X_OK):
        return FileNotFoundError(errno.ENOENT, "it is not there, or cannot be run", squashfuse)
    if is_of_fuse_2(squashfuse):
        return OSError(errno.ENOTSUP, "it was built with FUSE 2, which takes over no mount", squashfuse)
    try:
        mode = os.stat("/dev/fuse").st_mode
    except OSError as error:
        return error
    if mode & 0o006 != 0o006:
        return PermissionError(errno.EACCES, "it is not for users", "/dev/fuse")
    return None
