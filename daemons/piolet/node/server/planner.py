"""From a definition to a plan: what a container gets besides what its definition names.

Pure: the worker, on the node and as the user, finds out what of it is there.
"""

from __future__ import annotations

from piolet.container.plan import ENTRY_PROGRAM, ContainerPlan, PlannedMount
from piolet.environment.definition import Definition
from piolet.environment.mounts import parse
from piolet.environment.settings import EnvironmentConfig

# The host's device files, with /dev/shm and the terminals: a step's devices are what its cgroup allows, inside as
# outside. The host's /proc, since there is no pid namespace: slurmstepd signals and accounts tasks by their pids.
_SYSTEM = ("/proc", "/sys", "/dev")
_HOST_DIRECTORIES = ("/tmp",)  # noqa: S108 - the node's own, as without a container
_HOST_FILES = ("/etc/resolv.conf", "/etc/hosts", "/etc/localtime")


def entry_program(definition: Definition) -> bool:
    """Return whether the entry program is to stand in front of the tasks' command."""
    return bool(definition.entrypoint) or definition.remap_root


def make_plan(definition: Definition, label: str, home: str | None, config: EnvironmentConfig) -> ContainerPlan:
    """Return the plan of a container; `home` is the user's home directory, mounted if the site wants that."""
    assert definition.image is not None
    mounts = [PlannedMount(path, path) for path in _SYSTEM]
    mounts += [PlannedMount(path, path, optional=True) for path in _HOST_DIRECTORIES]
    mounts += [PlannedMount(path, path, flags=("ro",), optional=True, file=True) for path in _HOST_FILES]
    if home is not None and home.startswith("/") and home != "/" and config.mount_home:
        mounts.append(PlannedMount(home, home, optional=True))
    for mount in map(parse, config.mounts):
        mounts.append(PlannedMount(mount.source, mount.destination or mount.source, flags=mount.flags, optional=True))
    taken = {mount.destination.rstrip("/") for mount in definition.mounts}
    mounts = [mount for mount in mounts if mount.destination not in taken]
    helper = config.entry_program
    entry = entry_program(definition) or config.runtime == "crun"
    if entry:
        mounts.append(PlannedMount(helper, ENTRY_PROGRAM, flags=("ro",)))
    # Shorter destinations first, so that none hides another; the user's own after ours of the same depth.
    mounts += [PlannedMount(m.source, m.destination, m.kind, m.flags) for m in definition.mounts]
    mounts.sort(key=lambda mount: mount.destination.rstrip("/").count("/"))
    return ContainerPlan(
        label=label,
        sqsh=definition.image.path if definition.image.store == "user" else None,
        writable=definition.writable,
        runtime=config.runtime,
        mounts=tuple(mounts),
        entrypoint=definition.entrypoint,
        remapped=definition.remap_root,
    )
