"""Builds a container with an OCI runtime (crun) instead of our own system calls, behind the same interface.

The worker has put the root together, mounts included, by the same code as the native builder's; crun takes that root as
it is, creates the container, and the worker joins it. Slower (docs/benchmarks.md);
kept for sites that want an OCI runtime.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from typing import Any

from piolet.base.errors import ContainerError
from piolet.container.plan import ENTRY_PROGRAM, ContainerPlan
from piolet.system import linux

_CREATE_S = 15


def config(plan: ContainerPlan, root: str) -> dict[str, Any]:
    """Return the OCI runtime configuration of a container whose mounts are at the host's path `root` already."""
    uid, gid = os.getuid(), os.getgid()
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": uid, "gid": gid},
            # Never started: create wants a program that is there, and this one always is.
            "args": [ENTRY_PROGRAM],
            "env": ["PATH=/usr/bin:/bin"],
            "cwd": "/",
            "noNewPrivileges": True,
        },
        "root": {"path": "root", "readonly": not plan.writable},
        # Where /dev is no mount that it was told of, crun makes devices in it: and that is the host's.
        "mounts": [{"destination": "/dev", "type": "bind", "source": f"{root}/dev", "options": ["rbind", "rslave"]}],
        "linux": {
            "namespaces": [{"type": "mount"}, {"type": "user"}],
            "uidMappings": [{"containerID": uid, "hostID": uid, "size": 1}],
            "gidMappings": [{"containerID": gid, "hostID": gid, "size": 1}],
            "rootfsPropagation": "rslave",
        },
    }


def enter(plan: ContainerPlan, crun: str, bundle: str) -> None:
    """Create the container of the bundle in the directory `bundle` (its root is `root`) and join it.

    Raises ContainerError with the runtime's own last lines.
    """
    with open(f"{bundle}/config.json", "w", encoding="utf-8") as file:
        json.dump(config(plan, f"{bundle}/root"), file)
    pid_file = f"{bundle}/pid"
    command = [crun, "--root", f"{bundle}/crun", "--cgroup-manager=disabled", "create"]
    command += ["--bundle", bundle, "--pid-file", pid_file, "piolet"]
    try:
        # Into a file: the container's first process keeps a pipe open, and we would wait for its end.
        with open(f"{bundle}/crun.log", "w+b") as output:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, timeout=_CREATE_S, check=False
            )
            output.seek(0)
            said = output.read(65536).decode("utf-8", "replace")
    except OSError as error:
        raise ContainerError(f"cannot run {crun}: {error.strerror}", "install crun on the node") from None
    except subprocess.TimeoutExpired:
        raise ContainerError(f"{crun} did not create the container within {_CREATE_S} s") from None
    if done.returncode:
        last = " / ".join(said.strip().splitlines()[-3:])
        raise ContainerError(f"{crun} could not create the container: {last}")
    with open(pid_file, encoding="ascii") as file:
        pid = int(file.read())
    try:
        user = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        mount = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        linux.setns(user, linux.CLONE_NEWUSER)
        linux.setns(mount, linux.CLONE_NEWNS)
    except OSError as error:
        raise ContainerError(f"cannot join the container that crun made: {error.strerror}") from None
    finally:
        os.kill(pid, signal.SIGKILL)
