"""Builds a container by system calls, in a worker that is already the job's user.

The worker is in a user namespace of its own and holds every capability there, none outside: the kernel enforces
what the user may mount. Sources are opened on the host side first; then the root is changed; then the
mounts are attached, so that every path of the image is resolved inside the image and cannot lead out.

Layout of the scratch directory (a tmpfs of the worker's own mount namespace):
    lower/   the image        upper/ work/   what the step writes        root/   both together
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from piolet.base.errors import ContainerError
from piolet.container import accounts, asroot, extras, folders, fuse, jobmarks, mountpoints, oci, upperlayer
from piolet.container.plan import OPTIONAL, SHELL, ContainerPlan, PlannedFolder, PlannedMount
from piolet.system import linux

_ATTRIBUTES = {
    "ro": linux.MOUNT_ATTR_RDONLY,
    "nosuid": linux.MOUNT_ATTR_NOSUID,
    "nodev": linux.MOUNT_ATTR_NODEV,
    "noexec": linux.MOUNT_ATTR_NOEXEC,
}
_PROPAGATION = {
    "private": linux.MS_PRIVATE,
    "rprivate": linux.MS_PRIVATE,
    "slave": linux.MS_SLAVE,
    "rslave": linux.MS_SLAVE,
    "shared": linux.MS_SHARED,
    "rshared": linux.MS_SHARED,
}
ENTRY_WORDS = "/run/piolet/entrypoint"
MOUNT, FILE, ROOT = "mount", "file", "root"
_SUPER_FLAGS = linux.MS_NOSUID | linux.MS_NODEV


@dataclass(frozen=True)
class HeldMount:
    """A mount whose source is in hand: a detached mount, and whether it is a directory."""

    mount: PlannedMount
    tree: int
    directory: bool


@dataclass(frozen=True)
class Made:
    """What of a plan is in the container's root from the start: of folders, and of links in these directories."""

    folders: Collection[PlannedFolder] = ()
    links: Collection[str] = ()


def build(
    plan: ContainerPlan,
    image: int | None,
    kind: str,
    scratch: str,
    crun: str,
    mounter: fuse.Mounter | None,
    mark: Callable[[str], None],
) -> str:
    """Build the container and make it this process's root; return where of the plan's directories tasks start, or ''.

    plan     what to build
    image    a descriptor, or None when plan.sqsh names a file
    kind     what it is: MOUNT, the image's detached mount; FILE, its file, for `mounter`; ROOT, the finished overlay
    scratch  an existing directory to build in
    crun     the OCI runtime, for a plan that wants it
    mounter  mounts SquashFS files as the user; None when there are none
    mark     is told when a phase is over

    Raises ContainerError, with one sentence for the user.
    """
    made = _prepare(plan, image, kind, scratch, mounter)
    mark("image and overlay")
    sources = _sources(plan, mounter, scratch)
    many = [
        folders.take(folder, f"{scratch}/sqsh/many{number}", folder in made.folders)
        for number, folder in enumerate(plan.folders)
    ]
    mark("open the sources")
    lines = accounts.of_user(extras.account_lines(plan))
    mark("user database")
    if plan.runtime == "crun":
        with _inside(f"{scratch}/root"):
            start = _furnish(plan, lines, made, sources, many)
        oci.enter(plan, crun, scratch)
        _forbid_setuid()
        extras.start(plan)
        mark("crun")
        return start
    _change_root(f"{scratch}/root")
    mark("change root")
    start = _furnish(plan, lines, made, sources, many)
    _forbid_setuid()
    mark("accounts and mounts")
    if not plan.writable:
        _freeze_root()
    extras.start(plan)
    mark("the rest")
    return start


def _furnish(
    plan: ContainerPlan,
    lines: accounts.Lines,
    made: Made,
    sources: list[HeldMount],
    many: list[folders.HeldFolder],
) -> str:
    """Write what is ours into the root that this process has, then attach the mounts; return where tasks start.

    In this order: nothing of the host's is in the root yet, so that no link of the image leads our files there, and a
    mount of the user's at one of them wins.
    """
    accounts.write(lines)
    extras.write(plan, made.links)
    if plan.entrypoint or plan.remapped:
        _put_entrypoint(plan)
    if plan.remapped:
        asroot.write()
    own = {os.stat("/").st_dev}
    new = mountpoints.NewPlaces(own)
    for source in sources:
        _attach(source, own, new)
    for held in many:
        folders.attach(held, own)
    if (plan.entrypoint or plan.remapped) and not os.path.exists(ENTRY_WORDS):
        what, key = ("the entrypoint", "entrypoint") if plan.entrypoint else ("a command as root", "remap_root")
        if plan.shell:
            what = "[startup] and save need /run/piolet, which a mount hides"
            raise ContainerError(what, "mount what you need of it elsewhere, or leave them out")
        raise ContainerError(
            f"{what} cannot be run: a mount hides /run/piolet, where it is started from",
            f"mount what you need of it elsewhere, or set {key} = false",
        )
    if plan.shell and not os.access(SHELL, os.X_OK):
        raise ContainerError(
            f"the image has no {SHELL}, which [startup] and save need", "leave them out of the definition file"
        )
    if plan.workdir:
        mountpoints.make_workdir(plan.workdir, own)
    return next((path for path in plan.directories if os.path.isdir(path) and os.access(path, os.X_OK)), "")


def _prepare(plan: ContainerPlan, image: int | None, kind: str, scratch: str, mounter: fuse.Mounter | None) -> Made:
    """Mount the scratch tmpfs, the image and the overlay; return what of the plan was made before the overlay was."""
    try:
        linux.mount("piolet", scratch, "tmpfs", _SUPER_FLAGS, "mode=0755")
        for name in ("lower", "upper", "work", "root", "sqsh"):
            os.mkdir(f"{scratch}/{name}")
    except OSError as error:
        raise ContainerError(f"cannot make the container's scratch space: {error.strerror}") from None
    try:
        if image is not None and kind == FILE:
            assert mounter is not None
            mounter.serve(image, "the image", f"{scratch}/lower")
        elif image is not None:
            linux.attach(image, f"{scratch}/{'root' if kind == ROOT else 'lower'}")
    except OSError as error:
        raise ContainerError(f"cannot attach the image: {error.strerror}") from None
    if kind == ROOT:
        return Made()
    if plan.sqsh is not None:
        assert mounter is not None
        mounter.mount(plan.sqsh, f"{scratch}/lower")
    try:
        made = _made(plan, upperlayer.UpperLayer(f"{scratch}/lower", f"{scratch}/upper"))
    except OSError as error:
        raise ContainerError(f"cannot make {error.filename} for the container: {error.strerror}") from None
    options = f"lowerdir={scratch}/lower,upperdir={scratch}/upper,workdir={scratch}/work,userxattr"
    try:
        linux.mount(plan.label, f"{scratch}/root", "overlay", _SUPER_FLAGS, options)
    except OSError as error:
        raise ContainerError(
            f"cannot mount the container's overlay: {error.strerror}",
            "overlayfs in user namespaces needs Linux 5.11 or newer",
        ) from None
    return made


def _made(plan: ContainerPlan, layer: upperlayer.UpperLayer) -> Made:
    made = {folder for folder in plan.folders if layer.add(folder.destination, folder.names, folder.links)}
    links: dict[str, list[tuple[str, str]]] = {}
    for path, target in plan.links:
        directory, _, name = path.rpartition("/")
        links.setdefault(directory, []).append((name, target))
    return Made(made, {directory for directory, of in links.items() if layer.add(directory, (), of)})


def _sources(plan: ContainerPlan, mounter: fuse.Mounter | None, scratch: str) -> list[HeldMount]:
    sources = []
    for number, mount in enumerate(plan.mounts):
        source = _source(mount, mounter, f"{scratch}/sqsh/{number}")
        if source is not None:
            sources.append(source)
    return sources


def _source(mount: PlannedMount, mounter: fuse.Mounter | None, spare: str) -> HeldMount | None:
    if OPTIONAL in mount.flags and mount.kind != "tmpfs" and not _is_there(mount.source):
        return None
    try:
        if mount.kind == "tmpfs":
            os.mkdir(spare)
            linux.mount("tmpfs", spare, "tmpfs", _SUPER_FLAGS, "mode=1777")
            path = spare
        elif mount.kind == "sqsh":
            os.mkdir(spare)
            assert mounter is not None
            mounter.mount(mount.source, spare)
            path = spare
        elif mount.kind == "made":
            jobmarks.prepare(mount.source)
            path = mount.source
        elif mount.kind == "text":
            with open(spare, "w", encoding="utf-8", errors="surrogateescape") as file:
                file.write(mount.content)
            os.chmod(spare, 0o555 if "x" in mount.flags else 0o444)
            path = spare
        else:
            path = mount.source
        # As the user, and as at submit time: what they cannot use is not theirs to mount. To enter a directory is
        # enough; its contents have permissions of their own.
        mode = os.stat(path).st_mode
        directory = stat.S_ISDIR(mode)
        if not os.access(path, os.X_OK if directory else os.R_OK if stat.S_ISREG(mode) else os.F_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        tree = linux.clone_tree(path)
        _set_flags(tree, mount.flags)
    except OSError as error:
        if mount.optional:
            return None
        raise ContainerError(
            f"cannot mount {mount.source or 'a tmpfs'} at {mount.destination}: {error.strerror}",
            "the source must exist on every node of the job and be readable by you",
        ) from None
    return HeldMount(mount, tree, directory)


def _is_there(path: str) -> bool:
    """Return whether there is something at `path`; where that cannot be told, a mount of it says why."""
    try:
        os.stat(path)
    except OSError as error:
        return error.errno not in (errno.ENOENT, errno.ENOTDIR)
    return True


def _set_flags(tree: int, flags: tuple[str, ...]) -> None:
    attributes, propagation = 0, 0
    for flag in flags:
        attributes |= _ATTRIBUTES.get(flag, 0)
        propagation = _PROPAGATION.get(flag, propagation)
    if attributes or propagation:
        linux.set_mount_attributes(tree, attributes, propagation=propagation)


@contextlib.contextmanager
def _inside(root: str) -> Iterator[None]:
    """Resolve paths as in the container: a link of the image must not lead out of it."""
    outside = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.chroot(root)
        os.chdir("/")
        yield
    finally:
        os.fchdir(outside)
        os.chroot(".")
        os.close(outside)


def _change_root(root: str) -> None:
    try:
        os.chdir(root)
        linux.pivot_root(".", ".")
        # The old root is stacked on the new one: one lazy umount takes all of it away.
        linux.umount(".")
        os.chdir("/")
    except OSError as error:
        raise ContainerError(f"cannot change to the container's root: {error.strerror}") from None


def _attach(source: HeldMount, own: set[int], new: mountpoints.NewPlaces) -> None:
    """Attach a mount; `own`, the device numbers of the container's own file systems, gets that of a tmpfs."""
    there = None
    try:
        there = mountpoints.opened(source.mount, source.directory)
        if there is not None:
            linux.attach_at(source.tree, there)
            new.forget()
        elif place := new.make(source.mount.destination, source.directory):
            linux.attach(source.tree, place)
        elif place := mountpoints.find(source.mount, source.directory, own):
            linux.attach(source.tree, place)
            new.forget()
        else:
            return
        if source.mount.kind == "tmpfs":
            own.add(os.fstat(source.tree).st_dev)
    except OSError as error:
        if not source.mount.optional:
            raise mountpoints.no_place(source.mount, source.directory, error) from None
    finally:
        os.close(source.tree)
        if there is not None:
            os.close(there)


def _put_entrypoint(plan: ContainerPlan) -> None:
    """Write the entrypoint's words where the entry program looks for them (the program itself is a mount)."""
    try:
        os.makedirs(os.path.dirname(ENTRY_WORDS), mode=0o755, exist_ok=True)
        with open(ENTRY_WORDS, "wb") as file:
            file.write(b"".join(os.fsencode(word) + b"\0" for word in plan.entrypoint))
    except OSError as error:
        raise ContainerError(f"cannot write the entrypoint into the container: {error.strerror}") from None


def _forbid_setuid() -> None:
    """Make every mount of the container nosuid. Tasks gain nothing by a setuid program anyway (no_new_privs); what else
    comes to run in here must not, either."""
    try:
        tree = os.open("/", os.O_PATH | os.O_CLOEXEC)
        linux.set_mount_attributes(tree, linux.MOUNT_ATTR_NOSUID)
        os.close(tree)
    except OSError as error:
        raise ContainerError(f"cannot forbid setuid programs in the container: {error.strerror}") from None


def _freeze_root() -> None:
    try:
        tree = os.open("/", os.O_PATH | os.O_CLOEXEC)
        linux.set_mount_attributes(tree, linux.MOUNT_ATTR_RDONLY, recursive=False)
        os.close(tree)
    except OSError as error:
        raise ContainerError(f"cannot make the container's root read-only: {error.strerror}") from None
