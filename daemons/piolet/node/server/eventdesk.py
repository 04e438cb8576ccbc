"""The server's part in events that others see: what root's watcher says, and how tasks end, as slurmstepd says it.

How a task ends is its user's doing, whoever says it. At that socket only root may speak, and who did the kernel says
with each datagram: what anybody else says is dropped and logged.
"""

from __future__ import annotations

import json
import logging
import re
import selectors
import signal
import socket
import struct
import time

from piolet.base.errors import WireError
from piolet.events.envelope import USER
from piolet.events.spool import Spool
from piolet.node import watching
from piolet.node.shares import Sparse
from piolet.node.watching import Seen
from piolet.steps import identity
from piolet.transport import packets, wire
from piolet.transport.wire import Ended, Outcome

_log = logging.getLogger("pioletd")

_AT_ONCE = 64
_CREDENTIALS = struct.Struct("3i")  # struct ucred
_KILLED_MAX = 1000
_LATE_S = 60
"""A job is ended at once when its time is over, and with KillWait=30 its tasks so much later."""
_SUBJECT = re.compile(r"(?:gpu|port|fs|nic):[\x21-\x7e]{1,200}")


class EventDesk:
    """Hears both in the server's loop; `watcher` is the pair's end, `outcomes` where slurmsteps' datagrams come."""

    def __init__(
        self, selector: selectors.BaseSelector, watcher: socket.socket, outcomes: socket.socket, spool: Spool
    ) -> None:
        self._selector = selector
        self._watcher = watcher
        self._spool = spool
        self._wrong = Sparse(_log)
        self._out_of_memory: dict[tuple[int, str], None] = {}
        watcher.setblocking(False)
        selector.register(watcher, selectors.EVENT_READ, self._on_watcher)
        self._outcomes = outcomes
        outcomes.setblocking(False)
        selector.register(outcomes, selectors.EVENT_READ, self._on_outcomes)

    def _on_watcher(self) -> None:
        for _ in range(_AT_ONCE):
            if self._watcher.fileno() < 0:
                return
            try:
                data = self._watcher.recv(watching.MESSAGE_MAX)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                _log.error("the process that watches this node's hardware has ended")
                self._selector.unregister(self._watcher)
                self._watcher.close()
                return
            try:
                self._take(packets.decode(Seen, data))
            except WireError as error:
                self._wrong.error("what the watcher said is not understood: %s", error)

    def _take(self, seen: Seen) -> None:
        body = packets.parse(seen.body)
        if seen.kind not in watching.KINDS or seen.source not in ("kernel", "root") or not isinstance(body, dict):
            raise WireError(f"it says {json.dumps(seen.kind)[:60]} of {json.dumps(seen.source)[:60]}")
        if seen.subject and not _SUBJECT.fullmatch(seen.subject):
            raise WireError("its subject is none")
        self._spool.put(
            seen.kind, seen.source, at=seen.at, severity=seen.severity, subject=seen.subject, body=body, job=seen.job,
            step=seen.step, uid=seen.uid,
        )  # fmt: skip
        if seen.kind == "kernel.oom" and seen.job is not None:
            self._out_of_memory[seen.job, identity.base(seen.step)] = None
            while len(self._out_of_memory) > _KILLED_MAX:
                del self._out_of_memory[next(iter(self._out_of_memory))]

    def _on_outcomes(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                data, beside, _, _ = self._outcomes.recvmsg(
                    wire.OUTCOME_BYTES + 1, socket.CMSG_SPACE(_CREDENTIALS.size)
                )
            except OSError:
                return
            try:
                said = wire.decode_outcome(data)
                pid, uid = _sender(beside)
                if uid != 0:
                    raise WireError(f"process {pid} of uid {uid} said it, and only root may")
            except WireError as error:
                self._wrong.error("what is said of the end of a step is refused: %s", error.message)
                continue
            self._tell(said)

    def _tell(self, said: Outcome) -> None:
        # The kernel writes to its log before the process is dead.
        self._on_watcher()
        killed = (said.job, identity.word(said.step)) in self._out_of_memory
        array = list(said.array) if said.array is not None else None
        other = [Ended(-1, 0, said.others)] if said.others else []
        for number, ended in enumerate([*said.ended, *other]):
            body = {
                **_status(ended.status), "why": _why(ended.status, killed, said.end, time.time()), "task": ended.first,
                "tasks": ended.tasks, "order": number, "array": array,
                "het_job": said.het_job,
            }  # fmt: skip
            self._spool.put(
                "step.outcome", USER, job=said.job, step=identity.word(said.step), run=said.restarts & 0x7FFFFFFF,
                uid=said.uid, body={name: value for name, value in body.items() if value is not None},
            )  # fmt: skip


def _sender(beside: list[tuple[int, int, bytes]]) -> tuple[int, int]:
    """Return pid and uid of who sent a datagram, as the kernel says it. Raises WireError."""
    for level, kind, data in beside:
        if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS and len(data) >= _CREDENTIALS.size:
            pid, uid, _ = _CREDENTIALS.unpack_from(data)
            return pid, uid
    raise WireError("the kernel does not say who said it")


def _status(status: int) -> dict[str, int | None]:
    """Return the exit status or the signal in a status of wait(2)."""
    if status < 0:
        return {}
    number = status & 0x7F
    return {"signal": number, "core": 1 if status & 0x80 else None} if number else {"status": status >> 8 & 0xFF}


def _why(status: int, killed: bool, end: int, now: float) -> str:
    """Return why tasks ended so, as far as a node can know it: whose `scancel` a signal was the accounting knows."""
    if status < 0:
        return "other"
    number = status & 0x7F
    # A shell that is the task says of what it started 128 more than the signal.
    by = number or max(0, (status >> 8 & 0xFF) - 128)
    if killed and by == signal.SIGKILL:
        return "out_of_memory"
    if by in (signal.SIGTERM, signal.SIGKILL) and 0 < end <= now < end + _LATE_S:
        return "time_limit"
    return "signal" if number else "exit"
