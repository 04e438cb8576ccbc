"""Root's process for vetting: warm, and with one operation: fork, become the user of a vet step's task, run the runner.

The libraries that evals need take longer to import than most evals take to run, so they are imported once, when the
first vetting comes. A vetting is two forks. The first stays root and does nothing but watch: it asks the kernel who
connected, tells the server which job and step that is, and at the end kills what the second one left, wherever it hid.
The second enters the task's control groups, takes over its limits, its CPUs, its environment and its directory, becomes
its user for good, and only then reads the plan, which is the user's word.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import select
import selectors
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from piolet.base.errors import PioletError, WireError
from piolet.node.root import descendants, kernellog, sitepast, vettask
from piolet.node.shares import Bound, Sparse
from piolet.node.vetting import MESSAGE_MAX, Request
from piolet.system import linux, peer
from piolet.transport import packets, wire

_log = logging.getLogger("pioletd.zygote")

VETTINGS = Bound(each=32, total=512)
_END_S, _AGAIN_S, _AGAIN_MAX_S = 10.0, 1.0, 30.0
_ZYGOTE_END_S = 3.0

Facts = dict[str, list[str]]
Work = Callable[[bytes, int, Facts, int], None]
"""What a child does as the user: with the plan, the descriptors for its lines and for the spool, and root's facts."""


@dataclass(frozen=True)
class _Vetting:
    """A watching process: its user's uid, its pid, a pidfd of it, and the pipe whose end tells it to end everything."""

    uid: int
    pid: int
    pidfd: int
    hold: int


class Zygote:
    """The loop. `prepare` imports what the children need and returns what they do; `listener` is the vet socket.

    `past` is the file with the node's first values, and the uid of the server, whose it has to be.
    """

    def __init__(
        self, channel: socket.socket, prepare: Callable[[], Work], listener: peer.File,
        past: tuple[str, int] | None = None,
    ) -> None:  # fmt: skip
        self._past = past
        self._channel = channel
        self._listener = listener
        self._prepare = prepare
        self._work: Work | None = None
        self._vettings: dict[int, _Vetting] = {}
        self._refused = Sparse(_log)
        self._selector = selectors.DefaultSelector()
        self._selector.register(channel, selectors.EVENT_READ, None)

    def run(self) -> None:
        """Serve until the server ends."""
        # What a watching process that was killed has left comes to this one.
        descendants.collect_orphans()
        packets.send(self._channel, packets.encode({"began": True}))
        serving = True
        while serving:
            for ready, _ in self._selector.select():
                if ready.data is None:
                    serving = self._serve()
                else:
                    self._collect(ready.data)
        for vetting in self._vettings.values():
            os.close(vetting.hold)
        end = time.monotonic() + _ZYGOTE_END_S
        for vetting in self._vettings.values():
            select.select([vetting.pidfd], [], [], max(0.0, end - time.monotonic()))

    def _serve(self) -> bool:
        with packets.receive(self._channel, MESSAGE_MAX, 2) as packet:
            if not packet.data:
                return False
            try:
                self._act(packets.decode(Request, packet.data), packet.descriptors)
            except (WireError, OSError) as error:
                _log.error("a request for vetting is refused: %s", error)
        return True

    def _act(self, request: Request, descriptors: list[int]) -> None:
        if request.end is not None:
            if request.end in self._vettings:
                os.write(self._vettings[request.end].hold, b"e")
        elif request.key is None or len(descriptors) != 2:
            raise WireError("it has no key, or no connection")
        elif request.key in self._vettings:
            raise WireError(f"its key {request.key} is that of another")
        else:
            self._start(request.key, *descriptors)

    def _start(self, key: int, connection: int, spool: int) -> None:
        if self._work is None:
            self._work = self._prepare()
            # The garbage collector would touch, and so copy, every page in each forked process.
            gc.collect()
            gc.freeze()
        # A process that reads what is a user's can hang for as long as the user likes: it is their bound that it fills.
        with socket.socket(fileno=os.dup(connection)) as accepted:
            uid = peer.of(accepted).uid
        users = [one.uid for one in self._vettings.values()]
        if VETTINGS.reached(uid, users):
            mine = users.count(uid)
            self._refused.error("%d vettings of uid %d are at work, of %d: no other begins", mine, uid, len(users))
            _answer(self._channel, {"key": key, "status": 1})
            return
        told, hold = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            child = os.fork()
        except OSError as error:
            _log.error("cannot fork for a vetting: %s", error.strerror)
            os.close(told)
            os.close(hold)
            _refuse(self._channel, key, f"cannot fork for it: {error.strerror}")
            return
        if child == 0:
            _watch(key, self._channel, (connection, spool, told), self._listener, self._work, self._past)
        os.close(told)
        vetting = _Vetting(uid, child, os.pidfd_open(child), hold)
        self._vettings[key] = vetting
        self._selector.register(vetting.pidfd, selectors.EVENT_READ, key)

    def _collect(self, key: int) -> None:
        vetting = self._vettings.pop(key)
        self._selector.unregister(vetting.pidfd)
        _, status = os.waitpid(vetting.pid, 0)
        os.close(vetting.pidfd)
        os.close(vetting.hold)
        if status:
            _log.error("the process that watched a vetting was killed; what it left is ended")
            descendants.end_strays({one.pid for one in self._vettings.values()}, _END_S)
            _answer(self._channel, {"key": key, "status": 1})


def _answer(channel: socket.socket, value: dict[str, object]) -> None:
    with contextlib.suppress(OSError):
        packets.send(channel, packets.encode(value, compact=True))


def _watch(
    key: int, channel: socket.socket, descriptors: tuple[int, int, int], listener: peer.File, work: Work,
    past: tuple[str, int] | None,
) -> None:  # fmt: skip
    """Be root's process beside one vetting: fork its child, and end all that it started. Never returns.

    `descriptors` are the connection, the spool, and a pipe: a byte in it, or its end, says that the vetting is over.
    """
    connection, spool, told = descriptors
    status = 1
    try:
        # No signal for the daemon may end this before what it watches.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        os.setsid()
        linux.close_all_but({channel.fileno(), *descriptors})
        linux.set_name("pioletd-watch")
        descendants.collect_orphans()
        child = _begin(key, channel, descriptors, listener, work, past)
        for descriptor in (connection, spool):
            os.close(descriptor)
        ended = os.pidfd_open(child)
        select.select([ended, told], [], [])
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(ended, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if not descendants.end_all(_END_S):
            _log.error("processes of a vetting do not end %d s after they were killed", _END_S)
        _answer(channel, {"key": key, "status": code})
        channel.close()
        pause = _AGAIN_S
        while not descendants.end_all(0.0):
            time.sleep(pause)
            pause = min(2 * pause, _AGAIN_MAX_S)
        status = 0
    except (OSError, PioletError) as error:
        _tell(connection, error)
        descendants.end_all(_END_S)
        _refuse(channel, key, _what(error))
        status = 0
    except Exception:  # noqa: BLE001 - logged, and the zygote ends what is left
        _log.exception("a vetting failed")
    finally:
        os._exit(status)


def _begin(
    key: int, channel: socket.socket, descriptors: tuple[int, int, int], listener: peer.File, work: Work,
    past: tuple[str, int] | None,
) -> int:  # fmt: skip
    """Say whose task it is, and fork the child that becomes its user. Raises OSError and PioletError."""
    connection, spool, _ = descriptors
    with socket.socket(fileno=os.dup(connection)) as accepted:
        task, place = vettask.of_connection(accepted, listener)
    _answer(channel, {"key": key, **asdict(place)})
    log = kernellog.read()
    facts: Facts = {} if log is None else {"kernel_log": log}
    known = sitepast.read(*past) if past is not None else None
    if known is not None:
        facts[sitepast.FACT] = [known]
    child = os.fork()
    if child:
        os.close(task.directory)
        return child
    status = 1
    try:
        os.setsid()
        linux.close_all_but({connection, spool, task.directory})
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        os.set_inheritable(connection, False)
        os.set_inheritable(spool, False)
        nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        vettask.adopt(task)
        # The daemon's log is none of the user's.
        for standard in range(3):
            os.dup2(nothing, standard)
        linux.become(task.uid, task.gid, task.groups)
        linux.die_with_parent(signal.SIGKILL)
        linux.no_new_privileges()
        # From here on no process of the user's, whatever it is, looks into this one or into what it forks.
        linux.not_dumpable()
        os.fchdir(task.directory)
        os.close(task.directory)
        os.environ.clear()
        os.environ.update(task.environment)
        plan = wire.decode_vet(os.read(connection, wire.VET_MAX + 1))
        os.set_blocking(connection, True)
        work(plan.encode(), connection, facts, spool)
        status = 0
    except Exception as error:  # noqa: BLE001 - what the task is made of is the user's; it is told, and nobody else
        _tell(connection, error)
    finally:
        os._exit(status)


def _what(error: Exception) -> str:
    if isinstance(error, OSError):
        return str(error)
    return error.message if isinstance(error, PioletError) else f"{type(error).__name__}: {error}"


def _refuse(channel: socket.socket, key: int, why: str) -> None:
    text = "".join(one if one.isascii() and one.isprintable() else "?" for one in why[:300])
    _answer(channel, {"key": key, "status": 1, "why": text})


def _tell(connection: int, error: Exception) -> None:
    what = _what(error)
    with contextlib.suppress(OSError):
        os.write(connection, json.dumps({"error": f"cannot vet on this node: {what[:500]}"}).encode() + b"\n")
