"""Start processes into the cluster's control group, know them again, and end them politely first."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tools.cluster.errors import ClusterError
from tools.cluster.state import Process

# The shell moves itself before it becomes the program: no moment exists in which the program, or a
# child of it, is outside the group.
INTO_GROUP = 'echo $$ >"$0" && exec "$@"'

# An emulated machine, as of another kernel's guest, takes several times as long for everything.
PATIENCE = float(os.environ.get("PIOLET_TEST_PATIENCE", "1"))

FIXED_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def stat_fields(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the state (field 3) on; empty when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return []
    # The command's name may hold blanks and brackets; the last bracket ends it.
    return text.rpartition(")")[2].split()


def start_time(pid: int) -> int | None:
    """Return when `pid` started, in clock ticks since boot, or None: it is gone, or a zombie."""
    fields = stat_fields(pid)
    if len(fields) < 20 or fields[0] in "ZX":
        return None
    return int(fields[19])


def alive(process: Process) -> bool:
    return start_time(process.pid) == process.start


def daemon_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return what a daemon's environment is: nothing of the caller's."""
    return {"PATH": FIXED_PATH, "LANG": "C.UTF-8", "HOME": "/", **(extra or {})}


def spawn(
    name: str,
    argv: Sequence[str],
    log: Path,
    group: Path,
    environment: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
) -> Process:
    """Start a daemon in its own session, its output appended to `log`; return at once."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        child = subprocess.Popen(
            ["/bin/sh", "-c", INTO_GROUP, str(group / "cgroup.procs"), *argv],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            env=daemon_environment(environment),
            start_new_session=True,
            pass_fds=pass_fds,
        )
    start = start_time(child.pid)
    # Popen warns about children that outlive it; these are meant to.
    child.returncode = 0
    if start is None:
        raise ClusterError(f"{name} ended at once", log=log)
    return Process(name, child.pid, start)


def wait_ready(process: Process, log: Path, timeout_s: float, ready: Callable[[], bool]) -> None:
    """Wait until `ready` says so. Raises ClusterError when the process ends first, or never gets there."""
    timeout_s *= PATIENCE
    deadline = time.monotonic() + timeout_s
    while not ready():
        if not alive(process):
            raise ClusterError(f"{process.name} ended before it was ready", log=log)
        if time.monotonic() > deadline:
            raise ClusterError(f"{process.name} was not ready after {timeout_s:.0f} s", log=log)
        time.sleep(0.01)


def terminate(process: Process, number: int = signal.SIGTERM) -> bool:
    """Send a signal to exactly this process; False when it is gone. A pid file descriptor rules out a mix-up."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except OSError:
        return False
    try:
        if not alive(process):
            return False
        signal.pidfd_send_signal(descriptor, number)
        return True
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)


def wait_end(processes: Sequence[Process], timeout_s: float) -> list[Process]:
    """Wait until all of `processes` ended; return those that have not after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    left = [p for p in processes if alive(p)]
    while left and time.monotonic() < deadline:
        time.sleep(0.01)
        left = [p for p in left if alive(p)]
    return left


def reap() -> None:
    """Collect children of ours that ended, so that they leave their control group."""
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return


def slurm_clients(slurm_confs: Sequence[Path]) -> list[Process]:
    """Return the Slurm commands that talk to this cluster from outside its control group."""
    wanted = {f"SLURM_CONF={path}".encode() for path in slurm_confs}
    found: list[Process] = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        pid = int(entry)
        try:
            program = os.path.basename(os.readlink(f"/proc/{pid}/exe"))
            if program not in ("srun", "sbatch", "salloc", "sattach", "scancel", "squeue", "sinfo", "scontrol"):
                continue
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        start = start_time(pid)
        if start is not None and wanted.intersection(environment):
            found.append(Process(program, pid, start))
    return found
