"""What every container has of the host without being asked, and may be told to leave out by `!DST`."""

from __future__ import annotations

from piolet.environment.mounts import parse
from piolet.environment.settings import EnvironmentConfig

# The host's device files, with /dev/shm and the terminals: a step's devices are what its cgroup allows, inside as
# outside. The host's /proc, since there is no pid namespace: slurmstepd signals and accounts tasks by their pids.
SYSTEM = ("/proc", "/sys", "/dev")
DIRECTORIES = ("/tmp",)  # noqa: S108 - the node's own, as without a container
FILES = ("/etc/resolv.conf", "/etc/hosts", "/etc/localtime")


def may_be_dropped(destination: str, config: EnvironmentConfig) -> bool:
    """Return whether something is mounted there without being asked, the home directory left out of account."""
    site = (mount.destination or mount.source for mount in map(parse, config.mounts))
    return destination in (*DIRECTORIES, *FILES, *site)
