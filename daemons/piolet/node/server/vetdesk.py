"""The server's part in vetting: takes a vet step's tasks, and gives each to the zygote with its connection.

A task is an ordinary user's process; who it is the kernel says. It sends one VET message and then reads lines until
the connection ends. The desk looks at the message and leaves it there: its child reads it again, and who the task is
it asks the kernel, since root's processes do not believe this one. What the task sends later is for its child, too: so
the desk does not look there any more, and sees by a pidfd that the task is gone. Its child is ended then.

Each user has a share of the connections a second, of those that are open, and of the spool. Whoever is above the first
is closed without a word: a sentence would cost more than the connection.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import selectors
import socket
from dataclasses import dataclass

from piolet.base.errors import PioletError, WireError
from piolet.base.rates import Rates
from piolet.node import vetting
from piolet.node.server.verdicts import LINE_MAX, Verdicts, Who
from piolet.node.shares import Bound, Sparse
from piolet.node.vetting import MESSAGE_MAX, Answer
from piolet.steps import hierarchies
from piolet.system import peer
from piolet.transport import packets, wire
from piolet.transport.listener import Listener, Refusals

_log = logging.getLogger("pioletd")

_TASKS = Bound(each=16, total=256)
_AT_ONCE, _A_SECOND = 64, 16
_ACCEPTED_MAX = 64
_CGROUP_BYTES = 65536
_SPOOLED_MAX = 1 << 20
_FOUND = (vetting.CGROUP, vetting.SLURMSTEPD, vetting.UNKNOWN)
_NAME = re.compile(r"[A-Za-z0-9_+-]{1,60}")


@dataclass
class VetTask:
    """A connected task; `asked` once its plan is with the zygote, and then watched by `pidfd`.

    who     whose it is; its job and step are root's word, which comes before the first verdict
    """

    key: int
    channel: socket.socket
    who: Who
    asked: bool = False
    pidfd: int = -1
    ended: bool = False
    placed: bool = False
    verdicts: int = -1
    rest: bytes = b""
    skipping: bool = False
    spooled: int = 0


class VetDesk:
    """Serves `listener` in the server's loop; `zygote` is the pair's end."""

    def __init__(
        self, selector: selectors.BaseSelector, listener: socket.socket, zygote: socket.socket, verdicts: Verdicts
    ) -> None:
        self._verdicts = verdicts
        self._selector = selector
        self._refusals = Refusals(selector)
        self._zygote = zygote
        self._connections = Rates(_A_SECOND, _AT_ONCE)
        self._flood = Sparse(_log)
        self._tasks: dict[int, VetTask] = {}
        self._next_key = 1
        # If root's process for vetting hangs, vettings fail: the server has steps with containers to serve, too.
        zygote.setblocking(False)
        # Many at once: whoever connects in a loop is not to be as slow to get rid of as a turn of the loop.
        Listener(selector, listener, self._take, _log, at_once=_ACCEPTED_MAX, what="a vet step's connection")
        selector.register(zygote, selectors.EVENT_READ, self._on_zygote)

    def _take(self, channel: socket.socket, who: peer.Peer) -> None:
        pid, uid, _ = who
        if not self._connections.take(uid):
            self._flood.error("uid %d connects too often for vetting, last process %d: it is closed unheard", uid, pid)
            channel.close()
            return
        if _TASKS.reached(uid, [task.who.uid for task in self._tasks.values()]):
            message = wire.encode_error("too many vettings run on this node at once", "try again later")
            self._refusals.refuse(channel, message)
            return
        task = VetTask(self._next_key, channel, Who(uid, pid))
        self._next_key += 1
        self._tasks[task.key] = task
        self._selector.register(channel, selectors.EVENT_READ, lambda: self._on_task(task))

    def _on_task(self, task: VetTask) -> None:
        try:
            data = task.channel.recv(wire.VET_MAX + 1, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close(task)
            return
        if wire.is_decision(data):
            self._take_decision(task, data)
            return
        try:
            wire.decode_vet(data)
            task.pidfd = peer.pidfd_of(task.channel, task.who.pid)
            task.verdicts, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                packets.send(self._zygote, packets.encode({"key": task.key}), [task.channel.fileno(), write])
            finally:
                os.close(write)
            task.asked = True
            self._selector.register(task.verdicts, selectors.EVENT_READ, lambda: self._on_verdicts(task))
            self._selector.unregister(task.channel)
            self._selector.register(task.pidfd, selectors.EVENT_READ, lambda: self._close(task))
        except (PioletError, OSError) as error:
            message = error.message if isinstance(error, PioletError) else f"vetting is not to be had: {error.strerror}"
            with contextlib.suppress(OSError):
                task.channel.recv(1)  # a close with the task's message unread would lose the sentence
                task.channel.send(wire.encode_error(message, None))
            self._close(task)

    def _take_decision(self, task: VetTask, data: bytes) -> None:
        """Spool what an srun says that it made of a vetting. It is told nothing, and does not wait."""
        with contextlib.suppress(WireError):
            text = wire.decode_vet(data, wire.DECISION)
            self._verdicts.decide(_placed(task.who), text)
        with contextlib.suppress(OSError):
            task.channel.recv(1)
        self._close(task)

    def _on_verdicts(self, task: VetTask) -> None:
        """Spool what the child says that it found, up to a bound: it is the user."""
        if not task.placed:
            # Root said where the task belongs before the child was there that wrote this.
            self._hear_zygote()
        try:
            data = os.read(task.verdicts, 65536)
        except OSError:
            return
        *lines, task.rest = (task.rest + data).split(b"\n")
        task.spooled += len(data)
        for line in lines:
            if not task.skipping:
                self._verdicts.put(task.who, line)
            task.skipping = False
        if len(task.rest) > LINE_MAX:
            # It says that it is too long; the rest of it is skipped.
            if not task.skipping:
                self._verdicts.put(task.who, task.rest)
            task.rest, task.skipping = b"", True
        if task.spooled > _SPOOLED_MAX:
            self._verdicts.drop(task.who.uid, 1, len(task.rest))
        if not data or task.spooled > _SPOOLED_MAX:
            self._end_verdicts(task)

    def _end_verdicts(self, task: VetTask) -> None:
        if task.verdicts >= 0:
            with contextlib.suppress(KeyError):
                self._selector.unregister(task.verdicts)
            os.close(task.verdicts)
            task.verdicts = -1

    def _close(self, task: VetTask) -> None:
        if self._tasks.pop(task.key, None) is None:
            return
        self._selector.unregister(task.pidfd if task.asked else task.channel)
        task.channel.close()
        if task.verdicts >= 0:
            self._on_verdicts(task)
        self._end_verdicts(task)
        if task.pidfd >= 0:
            os.close(task.pidfd)
        if task.asked and not task.ended:
            with contextlib.suppress(OSError):
                packets.send(self._zygote, packets.encode({"end": task.key}))

    def _on_zygote(self) -> None:
        if self._hear_zygote():
            return
        _log.error("the processes for vetting have ended, and pioletd ends with them")
        self._selector.unregister(self._zygote)
        for task in list(self._tasks.values()):
            self._close(task)

    def _hear_zygote(self) -> bool:
        """Take all that the zygote has said; return False when it has ended."""
        while True:
            try:
                data = self._zygote.recv(MESSAGE_MAX)
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not data:
                return False
            try:
                self._hear(decode(data))
            except WireError as error:
                _log.error("what the process for vetting said is not understood: %s", error)

    def _hear(self, said: Answer) -> None:
        if said.began:
            # There was another one before if anything was asked of it, and its children ended with it.
            for task in [task for task in self._tasks.values() if task.asked]:
                task.ended = True
                self._close(task)
            return
        found = self._tasks.get(said.key)
        if found is None:
            return
        if said.found is not None and not found.placed:
            found.who = Who(found.who.uid, found.who.pid, said.job, said.step, said.found)
            found.placed = True
        elif said.status is not None:
            if said.why is not None:
                self._verdicts.refuse(found.who, said.why)
            found.ended = True
            self._close(found)


def _placed(who: Who) -> Who:
    """Return it with the job and step of whose control group it is, where there is one: the server may see no more."""
    try:
        with open(f"/proc/{who.pid}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
            groups = hierarchies.parse(file.read(_CGROUP_BYTES))
        named = hierarchies.step_of(groups, hierarchies.own_mounts())
    except OSError:
        return who
    return who if named is None else Who(who.uid, who.pid, *named, vetting.CGROUP)


def decode(data: bytes) -> Answer:
    """Return what the zygote says. Raises WireError for what is none of it."""
    answer = packets.decode(Answer, data)
    names = [name for name in (answer.job, answer.step) if name is not None]
    if answer.why is not None and not answer.why.isprintable():
        raise WireError("it gives a reason that is none")
    if answer.found not in (None, *_FOUND) or not all(_NAME.fullmatch(name) for name in names):
        raise WireError("it names an impossible job or step")
    return answer
