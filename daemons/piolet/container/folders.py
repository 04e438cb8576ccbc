"""Many files of one directory, mounted in one of the container's: a driver brings forty.

Each is a mount of its own, as any other; names are looked up in open directories, which halves the time.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass

from piolet.base.errors import ContainerError
from piolet.container.plan import PlannedFolder
from piolet.system import linux


@dataclass(frozen=True)
class HeldFolder:
    """A folder whose files are in hand, as detached mounts in the order of their names.

    made  mount points and links are there: upperlayer.py has made them
    """

    folder: PlannedFolder
    trees: tuple[int, ...]
    made: bool


def take(folder: PlannedFolder, spare: str, made: bool) -> HeldFolder:
    """Take the files, as the user, before the root is changed. Raises ContainerError.

    spare  where the directory itself is mounted meanwhile, read-only as each copy of a part of that mount is then
    """
    name = ""
    try:
        os.mkdir(spare)
        whole = linux.clone_tree(folder.source)
        try:
            linux.set_mount_attributes(whole, linux.MOUNT_ATTR_RDONLY)
            linux.attach(whole, spare)
        finally:
            os.close(whole)
        directory = os.open(spare, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            trees = []
            for name in folder.names:
                trees.append(linux.clone_file(directory, name))
        finally:
            os.close(directory)
    except OSError as error:
        raise ContainerError(
            f"cannot mount {folder.source}/{name} in the container: {error.strerror}",
            "the node has lost it since pioletd looked: a driver that is being updated?",
        ) from None
    return HeldFolder(folder, tuple(trees), made)


def attach(held: HeldFolder, own: set[int]) -> None:
    """Attach the files, and make the links, in the root that this process has. Raises ContainerError.

    own  the device numbers of the container's own file systems: nothing is made in any other
    """
    folder, name = held.folder, ""
    try:
        real = os.path.realpath(folder.destination)
        with contextlib.suppress(FileExistsError):
            os.makedirs(real, mode=0o755)
        if os.stat(real).st_dev not in own:
            raise ContainerError(
                f"devices or hooks need files in {folder.destination}, where you have mounted something",
                "mount what you need elsewhere",
            )
        directory = os.open(real, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for name, tree in zip(folder.names, held.trees, strict=True):
                if not held.made:
                    _make(name, directory)
                linux.attach_file(tree, directory, name)
                os.close(tree)
            for name, target in () if held.made else folder.links:
                _link(name, target, directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise ContainerError(f"cannot make {folder.destination}/{name} in the container: {error.strerror}") from None


def _make(name: str, directory: int) -> None:
    """Make an empty file, unless there is one; a link of the image gives way."""
    try:
        os.mknod(name, 0o644, dir_fd=directory)
    except FileExistsError:
        try:
            os.readlink(name, dir_fd=directory)
        except OSError:
            return  # it is none
        os.unlink(name, dir_fd=directory)
        os.mknod(name, 0o644, dir_fd=directory)


def _link(name: str, target: str, directory: int) -> None:
    try:
        os.symlink(target, name, dir_fd=directory)
    except FileExistsError:
        os.unlink(name, dir_fd=directory)
        os.symlink(target, name, dir_fd=directory)
