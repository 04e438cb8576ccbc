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
import grp
import os
import pwd
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from piolet.base.errors import ContainerError
from piolet.container import fuse, oci
from piolet.container.plan import ContainerPlan, PlannedMount
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
# As root apt becomes another user for downloads, and does not take it that it did not.
APT_SETTINGS, APT_TEXT = "/etc/apt/apt.conf.d/99piolet", 'APT::Sandbox::User "root";\n'
MOUNT, FILE, ROOT = "mount", "file", "root"
_SUPER_FLAGS = linux.MS_NOSUID | linux.MS_NODEV


@dataclass(frozen=True)
class HeldMount:
    """A mount whose source is in hand: a detached mount, and whether it is a directory."""

    mount: PlannedMount
    tree: int
    directory: bool


def build(
    plan: ContainerPlan,
    image: int | None,
    kind: str,
    scratch: str,
    crun: str,
    mounter: fuse.Mounter | None,
    mark: Callable[[str], None],
) -> None:
    """Build the container and make it this process's root.

    plan     what to build
    image    a descriptor, or None when plan.sqsh names a file
    kind     what it is: MOUNT, the image's detached mount; FILE, its file, for `mounter`; ROOT, the finished overlay
    scratch  an existing directory to build in
    crun     the OCI runtime, for a plan that wants it
    mounter  mounts SquashFS files as the user; None when there are none
    mark     is told when a phase is over

    Raises ContainerError, with one sentence for the user.
    """
    _prepare(plan, image, kind, scratch, mounter)
    if plan.remapped:
        _tell_apt(f"{scratch}/root")
    mark("image and overlay")
    sources = _sources(plan, mounter, scratch)
    mark("open the sources")
    accounts = _accounts()
    mark("user database")
    if plan.runtime == "crun":
        _enter_crun(plan, crun, sources, scratch, accounts)
        _forbid_setuid()
        if plan.entrypoint or plan.remapped:
            _put_entrypoint(plan)
        mark("crun")
        return
    _change_root(f"{scratch}/root")
    mark("change root")
    for source in sources:
        _attach(source)
    _forbid_setuid()
    mark("attach the sources")
    _write_accounts(*accounts)
    if plan.entrypoint or plan.remapped:
        _put_entrypoint(plan)
    if not plan.writable:
        _freeze_root()
    mark("accounts and rest")


def _prepare(plan: ContainerPlan, image: int | None, kind: str, scratch: str, mounter: fuse.Mounter | None) -> None:
    """Mount the scratch tmpfs, the image and the overlay."""
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
        return
    if plan.sqsh is not None:
        assert mounter is not None
        mounter.mount(plan.sqsh, f"{scratch}/lower")
    options = f"lowerdir={scratch}/lower,upperdir={scratch}/upper,workdir={scratch}/work,userxattr"
    try:
        linux.mount(plan.label, f"{scratch}/root", "overlay", _SUPER_FLAGS, options)
    except OSError as error:
        raise ContainerError(
            f"cannot mount the container's overlay: {error.strerror}",
            "overlayfs in user namespaces needs Linux 5.11 or newer",
        ) from None


def _sources(plan: ContainerPlan, mounter: fuse.Mounter | None, scratch: str) -> list[HeldMount]:
    sources = []
    for number, mount in enumerate(plan.mounts):
        source = _source(mount, mounter, f"{scratch}/sqsh/{number}")
        if source is not None:
            sources.append(source)
    return sources


def _source(mount: PlannedMount, mounter: fuse.Mounter | None, spare: str) -> HeldMount | None:
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


def _set_flags(tree: int, flags: tuple[str, ...]) -> None:
    attributes, propagation = 0, 0
    for flag in flags:
        attributes |= _ATTRIBUTES.get(flag, 0)
        propagation = _PROPAGATION.get(flag, propagation)
    if attributes or propagation:
        linux.set_mount_attributes(tree, attributes, propagation=propagation)


def _enter_crun(
    plan: ContainerPlan, crun: str, sources: list[HeldMount], scratch: str, accounts: tuple[str, list[str]]
) -> None:
    """Have crun build the container from the same sources, and join it."""
    mounts = []
    with _inside(f"{scratch}/root"):
        files = account_files("", *accounts)
        for path in files:
            if os.path.islink(path):
                os.unlink(path)
        places = [_place(source) for source in sources]
    for number, (source, place) in enumerate(zip(sources, places, strict=True)):
        if place is None:
            continue
        path = f"{scratch}/sqsh/at{number}"
        _make_mountpoint(path, source.directory)
        linux.attach(source.tree, path)
        mounts.append((path, place))
    for number, (destination, text) in enumerate(files.items()):
        path = f"{scratch}/sqsh/file{number}"
        with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
        mounts.append((path, destination))
    oci.enter(plan, crun, scratch, mounts)


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


def _attach(source: HeldMount) -> None:
    place = _place(source)
    try:
        if place is not None:
            linux.attach(source.tree, place)
    except OSError as error:
        if not source.mount.optional:
            raise _no_place(source, error) from None
    finally:
        os.close(source.tree)


def _place(source: HeldMount) -> str | None:
    """Make a mount's destination in the root that this process has; return it without links.

    None is an optional mount that has no place there.
    """
    destination = source.mount.destination
    try:
        if source.mount.file and os.path.islink(destination):
            os.unlink(destination)
        # A link of the image may lead to a place that is not there yet.
        place = os.path.realpath(destination)
        _make_mountpoint(place, source.directory)
    except OSError as error:
        if source.mount.optional:
            return None
        raise _no_place(source, error) from None
    return place


def _no_place(source: HeldMount, error: OSError) -> ContainerError:
    mount, kind = source.mount, "directory" if source.directory else "file"
    return ContainerError(
        f"cannot mount {mount.source or 'a tmpfs'} at {mount.destination} in the container: {error.strerror}",
        f"the source is a {kind}; the destination must be one too, or not be there yet",
    )


def _make_mountpoint(path: str, directory: bool) -> None:
    if os.path.exists(path):
        if os.path.isdir(path) != directory:
            number = errno.ENOTDIR if directory else errno.EISDIR
            raise OSError(number, os.strerror(number), path)
        return
    os.makedirs(path if directory else os.path.dirname(path), mode=0o755, exist_ok=True)
    if not directory:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))


def _accounts() -> tuple[str, list[str]]:
    """Return the user's line of passwd and the lines of their groups, from the host's databases."""
    uid, gid = os.getuid(), os.getgid()
    try:
        user = pwd.getpwuid(uid)
        name, line = user.pw_name, f"{user.pw_name}:x:{uid}:{gid}:{user.pw_gecos}:{user.pw_dir}:{user.pw_shell}"
    except KeyError:
        name, line = str(uid), f"{uid}:x:{uid}:{gid}::/:/bin/sh"
    groups = []
    for number in dict.fromkeys([gid, *os.getgroups()]):
        try:
            groups.append(f"{grp.getgrgid(number).gr_name}:x:{number}:{name}")
        except KeyError:
            continue
    return line, groups


def merge_accounts(image: str, own: list[str]) -> str:
    """Return the image's passwd or group file with `own` lines in front, which win by name and by number.

    But who is root, or its group, is as the image has it: its shell and home, say.
    """
    if any(line.split(":")[2:3] == ["0"] for line in image.splitlines()):
        own = [line for line in own if line.split(":")[2] != "0"]
    names = {line.split(":")[0] for line in own}
    numbers = {line.split(":")[2] for line in own}
    kept = []
    for line in image.splitlines():
        fields = line.split(":")
        if len(fields) > 2 and fields[0] not in names and fields[2] not in numbers:
            kept.append(line)
    return "\n".join([*own, *kept]) + "\n"


def account_files(root: str, user: str, groups: list[str]) -> dict[str, str]:
    """Return what /etc/passwd and /etc/group of the image at `root` become for this user, by path."""
    files = {}
    for path, own in (("/etc/passwd", [user]), ("/etc/group", groups)):
        image = ""
        with contextlib.suppress(OSError), open(root + path, encoding="utf-8", errors="surrogateescape") as file:
            image = file.read(1 << 20)
        files[path] = merge_accounts(image, own)
    return files


def _write_accounts(user: str, groups: list[str]) -> None:
    for path, text in account_files("", user, groups).items():
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
            with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:
                file.write(text)
            os.chmod(path, 0o644)
        except OSError as error:
            raise ContainerError(f"cannot write the container's {path}: {error.strerror}") from None


def _put_entrypoint(plan: ContainerPlan) -> None:
    """Write the entrypoint's words where the entry program looks for them (the program itself is a mount)."""
    try:
        with open(ENTRY_WORDS, "wb") as file:
            file.write(b"".join(os.fsencode(word) + b"\0" for word in plan.entrypoint))
    except OSError as error:
        raise ContainerError(f"cannot write the entrypoint into the container: {error.strerror}") from None


def _tell_apt(root: str) -> None:
    """Have apt stay root, where the image has it. Before anything is mounted: what users mount is theirs."""
    try:
        with _inside(root), contextlib.suppress(FileNotFoundError), open(APT_SETTINGS, "w", encoding="ascii") as file:
            file.write(APT_TEXT)
    except OSError as error:
        raise ContainerError(f"cannot write {APT_SETTINGS} in the container: {error.strerror}") from None


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
