"""A container without Slurm and without pioletd: of this process's own user, to try devices in.

It is built by the same code as those of steps, in a child, from a directory or a .sqsh file; what is written to its
root is gone at its end. It has no control group of its own.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence

from piolet.base.errors import ContainerError, PioletError
from piolet.container import fuse, native
from piolet.container.entries import Additions
from piolet.container.plan import ContainerPlan, PlannedMount
from piolet.environment.settings import EnvironmentConfig
from piolet.system import linux

_HOST = ("/proc", "/sys", "/dev", "/tmp")  # noqa: S108 - as the containers of steps have it


def run(
    image: str, additions: Additions, words: Sequence[str], variables: Mapping[str, str], config: EnvironmentConfig
) -> int:
    """Run a command in a container of `image`; return its exit status, 126 if the container could not be built.

    image      a directory, or a SquashFS file
    additions  of hooks and devices
    words      the command
    variables  its environment

    Raises ContainerError: there is no such image.
    """
    if not os.path.exists(image):
        raise ContainerError(f"there is no image {image}", "name a directory with a root file system, or a .sqsh file")
    with tempfile.TemporaryDirectory(prefix="piolet-devices-") as scratch:
        child = os.fork()
        if child == 0:
            _become(image, additions, words, variables, config, scratch)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return 128 - code if code < 0 else code


def _become(
    image: str,
    additions: Additions,
    words: Sequence[str],
    variables: Mapping[str, str],
    config: EnvironmentConfig,
    scratch: str,
) -> None:
    """Build the container and be the command. Never returns."""
    try:
        _build(image, additions, config, scratch)
        linux.no_new_privileges()
        os.execvpe(words[0], list(words), dict(variables))
    except PioletError as error:
        _say(error.render())
    except OSError as error:
        _say(f"cannot run {words[0]} in the container: {error.strerror}")
    finally:
        os._exit(126)


def _say(text: str) -> None:
    os.write(2, f"piolet: error: {text}\n".encode("utf-8", "replace"))


def _build(image: str, additions: Additions, config: EnvironmentConfig, scratch: str) -> None:
    uid, gid, directory = os.getuid(), os.getgid(), os.path.isdir(image)
    mounts = [PlannedMount(path, path, optional=True) for path in _HOST]
    mounts += sorted(additions.mounts, key=lambda mount: mount.destination.count("/"))
    plan = ContainerPlan(
        "piolet-devices",
        None if directory else image,
        mounts=tuple(mounts),
        folders=additions.folders,
        links=additions.links,
        libraries=additions.libraries,
        compatible=additions.compatible,
        programs=additions.programs,
        accounts=additions.accounts,
    )
    linux.unshare(linux.CLONE_NEWUSER)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)
    linux.unshare(linux.CLONE_NEWNS)
    mounter = None if directory else fuse.Mounter(config.squashfuse)
    tree = linux.clone_tree(image) if directory else None
    native.build(plan, tree, native.MOUNT, scratch, config.crun, mounter, lambda _: None)
