"""Root's process for vetting: warm, and with one operation: fork, become the user of a vet step's task, run the runner.

The libraries that evals need take longer to import than most evals take to run, so they are imported once, when the
first vetting comes. Each vetting is a fork. The child enters the task's cgroup, takes over its limits, its CPUs, its
environment and its directory, becomes its user for good, and only then reads the plan, which is the user's word.

Requests come from the unprivileged server over a SOCK_SEQPACKET pair: JSON, with the task's connection as descriptor.
    {"key"}       vet for the process that made the connection: who that is the kernel says, and what it wants is still
                  in the connection; the child writes its lines there, and verdicts for the spool to a second descriptor
    {"end": key}  the task is gone: end the child and all that it started
Answers: {"began"} at its start, for it may be the second; {"key", "status"} when a child has ended.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import selectors
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass

from piolet import peer, wire
from piolet.errors import PioletError
from piolet.node import leftovers, linux

_log = logging.getLogger("pioletd.zygote")

MESSAGE_MAX = 256
_CGROUPS = "/sys/fs/cgroup"
_POLL_S = 0.05
_PASSES_MAX = 20
_LIMITS = {
    "Max address space": resource.RLIMIT_AS,
    "Max core file size": resource.RLIMIT_CORE,
    "Max cpu time": resource.RLIMIT_CPU,
    "Max data size": resource.RLIMIT_DATA,
    "Max file size": resource.RLIMIT_FSIZE,
    "Max locked memory": resource.RLIMIT_MEMLOCK,
    "Max open files": resource.RLIMIT_NOFILE,
    "Max processes": resource.RLIMIT_NPROC,
    "Max stack size": resource.RLIMIT_STACK,
}

Facts = dict[str, list[str]]
Work = Callable[[bytes, int, Facts, int], None]
"""What a child does as the user: with the plan, the descriptors for its lines and for the spool, and root's facts."""

# Drivers whose messages say that a device is at fault; the rest of the kernel's log is not the user's business.
_DRIVERS = ("NVRM: Xid", "nvidia-nvswitch", "mlx5_core", "mlx4_core", "cxi_", "hfi1", "amdgpu", "EDAC", "AER:")
_LOG_LINES_MAX = 1000


@dataclass(frozen=True)
class Task:
    """A process of a vet step, as /proc knows it."""

    pid: int
    uid: int
    gid: int
    groups: list[int]
    cgroups: list[tuple[str, str]]
    environment: dict[str, str]
    limits: dict[str, tuple[int, int]]
    directory: int


class Zygote:
    """The loop. `prepare` imports what the children need and returns what they do; `listener` is the vet socket."""

    def __init__(self, channel: socket.socket, prepare: Callable[[], Work], listener: peer.File) -> None:
        self._channel = channel
        self._listener = listener
        self._prepare = prepare
        self._work: Work | None = None
        self._children: dict[int, int] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(channel, selectors.EVENT_READ)

    def run(self) -> None:
        """Serve until the server ends."""
        self._channel.send(json.dumps({"began": True}).encode())
        while True:
            # Children are looked for at short intervals, only while there are any.
            if self._selector.select(_POLL_S if self._children else None) and not self._serve():
                break
            self._collect()
        for pid in self._children.values():
            _end(pid)

    def _serve(self) -> bool:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._channel, MESSAGE_MAX, 2)
        except ConnectionResetError:
            return False  # the server has ended with answers unread
        try:
            if not data:
                return False
            request = json.loads(data)
            if "end" in request:
                pid = self._children.get(int(request["end"]))
                if pid is not None:
                    _end(pid)
            elif len(descriptors) == 2:
                self._start(int(request["key"]), *descriptors)
        except (ValueError, KeyError, TypeError) as error:
            _log.error("a request for vetting is malformed: %s", error)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        return True

    def _start(self, key: int, connection: int, spool: int) -> None:
        if self._work is None:
            self._work = self._prepare()
        try:
            child = os.fork()
        except OSError as error:
            _log.error("cannot fork for a vetting: %s", error.strerror)
            self._answer(key, 1)
            return
        if child:
            self._children[key] = child
            return
        status = 1
        try:
            os.setsid()
            linux.close_all_but({connection, spool})
            with socket.socket(fileno=os.dup(connection)) as channel:
                pid, uid, _ = peer.of_accepted(channel, self._listener)
            task = look_up(pid, uid)
            log = kernel_log()
            facts: Facts = {} if log is None else {"kernel_log": log}
            adopt(task)
            linux.become(task.uid, task.gid, task.groups)
            linux.die_with_parent(signal.SIGKILL)
            linux.no_new_privileges()
            os.fchdir(task.directory)
            os.environ.clear()
            os.environ.update(task.environment)
            plan = wire.decode_vet(os.read(connection, wire.VET_MAX + 1))
            os.set_blocking(connection, True)
            self._work(plan.encode(), connection, facts, spool)
            status = 0
        except (OSError, PioletError) as error:
            with contextlib.suppress(OSError):
                os.write(connection, json.dumps({"error": f"cannot vet on this node: {error}"}).encode() + b"\n")
        finally:
            os._exit(status)

    def _collect(self) -> None:
        for key, pid in list(self._children.items()):
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                # What it started may have outlived it; until it is collected, the session's number is no other's.
                _end(pid)
                _, status = os.waitpid(pid, 0)
                del self._children[key]
                self._answer(key, os.waitstatus_to_exitcode(status))

    def _answer(self, key: int, status: int) -> None:
        with contextlib.suppress(OSError):
            self._channel.send(json.dumps({"key": key, "status": status}).encode())


def _end(pid: int) -> None:
    """Kill a child and the session that it began, in which each eval has a process group of its own."""
    seen: set[int] = set()
    for _ in range(_PASSES_MAX):
        members = {other for other in leftovers.processes() if _is_in(pid, other)} - seen
        if not members:
            break
        seen |= members
        for other in members:
            with contextlib.suppress(OSError):
                process = os.pidfd_open(other)
                try:
                    if _is_in(pid, other):
                        signal.pidfd_send_signal(process, signal.SIGKILL)
                finally:
                    os.close(process)


def _is_in(session: int, pid: int) -> bool:
    try:
        return os.getsid(pid) == session
    except OSError:
        return False


def look_up(pid: int, uid: int) -> Task:
    """Return what /proc says of the process, which must be this user's. Raises PioletError."""
    try:
        process = os.open(f"/proc/{pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        raise PioletError("the task that asked is gone") from None
    base = f"/proc/self/fd/{process}"
    try:
        with open(f"{base}/status", encoding="utf-8", errors="replace") as file:
            status = dict(line.split(":", 1) for line in file if ":" in line)
        with open(f"{base}/cgroup", encoding="utf-8") as file:
            cgroups = [(line.split(":", 2)[1], line.rstrip("\n").split(":", 2)[2]) for line in file]
        # Anybody may read this; prlimit(2) of another user's process needs CAP_SYS_RESOURCE.
        with open(f"{base}/limits", encoding="ascii") as file:
            limits = {line[:25].rstrip(): _limit(line[25:].split()) for line in file if line[:25].rstrip() in _LIMITS}
        with open(f"{base}/environ", "rb") as raw:
            entries = [entry.partition(b"=") for entry in raw.read(4 << 20).split(b"\0") if b"=" in entry]
        directory = os.open(f"{base}/cwd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise PioletError(f"the task that asked cannot be looked at: {error.strerror}") from None
    finally:
        os.close(process)
    # All four ids: a process that is changing its user is not to be taken for either.
    if set(map(int, status["Uid"].split())) != {uid}:
        raise PioletError("the task that asked is another user's by now")
    gids = set(map(int, status["Gid"].split()))
    if len(gids) != 1:
        raise PioletError("the task that asked has more than one primary group")
    environment = {os.fsdecode(name): os.fsdecode(value) for name, _, value in entries}
    groups = list(map(int, status["Groups"].split()))
    return Task(pid, uid, gids.pop(), groups, cgroups, environment, limits, directory)


def kernel_log() -> list[str] | None:
    """Return what drivers of accelerators, fabrics and memory have to say in the kernel's log; the latest lines.

    None: it cannot be read, which is not the same as clean.
    """
    lines: list[str] = []
    try:
        log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        while True:
            try:
                text = os.read(log, 8192).decode("utf-8", "replace")
            except BrokenPipeError:
                continue  # lines were overwritten while we read
            except OSError:
                break
            line = text.partition(";")[2].partition("\n")[0]
            if any(driver in line for driver in _DRIVERS):
                lines.append(line)
    finally:
        os.close(log)
    return lines[-_LOG_LINES_MAX:]


def adopt(task: Task) -> None:
    """Enter the task's cgroups, and take over its CPUs, niceness and resource limits. Raises OSError."""
    for controllers, path in task.cgroups:
        _enter(controllers, path)
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, os.sched_getaffinity(task.pid))
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, task.pid))
    for name, pair in task.limits.items():
        try:
            resource.setrlimit(_LIMITS[name], pair)
        except (OSError, ValueError):
            _log.warning("a vetting has not the step's limit '%s': pioletd lacks CAP_SYS_RESOURCE", name.lower())


def _limit(words: list[str]) -> tuple[int, int]:
    soft, hard = (resource.RLIM_INFINITY if word == "unlimited" else int(word) for word in words[:2])
    return soft, hard


def _enter(controllers: str, path: str) -> None:
    name = controllers.removeprefix("name=")
    directory = f"{_CGROUPS}/{name}{path}" if name else f"{_CGROUPS}{path}"
    if not name and not os.path.exists(f"{_CGROUPS}/cgroup.procs"):
        directory = f"{_CGROUPS}/unified{path}"
    if os.path.isdir(directory):
        with open(f"{directory}/cgroup.procs", "w", encoding="ascii") as file:
            file.write("0")
