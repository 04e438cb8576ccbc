"""Root's process for scoring: keeps the sampler running, and starts the writers that are the steps' users.

The sampler has no privileges and never opens a path of a user; a writer is the user and does nothing but take the
step's samples from a pipe (samples/writer.py). This process only forks the two. If the sampler dies it is started
again, and takes up the steps that run. Requests come from the sampler (node/scoring.py).

A writer stays in pioletd's control group: the step's is emptied by Slurm when the step ends, which is when the last
samples come.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pwd
import selectors
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from piolet.base.errors import WireError
from piolet.node.scoring import HUNG, MESSAGE_MAX, Order
from piolet.node.shares import Bound
from piolet.samples.settings import ScoreConfig
from piolet.system import linux
from piolet.transport import packets

if TYPE_CHECKING:
    from piolet.samples.dataset import Node

_log = logging.getLogger("pioletd.keeper")

WRITERS = Bound(each=256, total=1024)  # a file system that hangs is the trouble of those who use it
_POLL_S = 0.5
_AGAIN_S = 1.0
_END_S, _END_POLL_S = 2.0, 0.02
_NICE = 10


class Keeper:
    """The loop. `sample` is what the sampler does with its end of the pair, as the account; it does not return."""

    def __init__(
        self,
        account: pwd.struct_passwd,
        sample: Callable[[socket.socket], None],
        stop: socket.socket,
        settings: ScoreConfig,
    ) -> None:
        self._account = account
        self._sample = sample
        self._stop = stop
        self._settings = settings
        self._writers: dict[int, int] = {}  # the users, by process
        self._stuck: list[int] = []  # samplers that do not end

    def run(self) -> None:
        """Serve until the other end of `stop` closes."""
        while True:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            began = time.monotonic()
            pid = self._fork_sampler(ours, theirs)
            theirs.close()
            ended = self._serve(ours)
            ours.close()
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL if not ended else signal.SIGTERM)
            self._wait(pid)
            if ended:
                return
            _log.error("the sampler has ended; it is started again, and the steps that run have a gap")
            time.sleep(max(0.0, began + _AGAIN_S - time.monotonic()))

    def _wait(self, pid: int) -> None:
        """Wait for the end of a sampler, but not of one that the kernel does not let go of.

        It holds the pipes of its writers open then. They are told to make do with what has come, so that those of the
        next sampler can go on with the files.
        """
        for _ in range(round(_END_S / _END_POLL_S)):
            if os.waitpid(pid, os.WNOHANG)[0]:
                return
            time.sleep(_END_POLL_S)
        _log.error("process %d, a sampler, is stuck in a driver, and is left alone", pid)
        self._stuck.append(pid)
        for writer in self._writers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(writer, signal.SIGTERM)

    def _fork_sampler(self, ours: socket.socket, theirs: socket.socket) -> int:
        pid = os.fork()
        if pid:
            return pid
        try:
            ours.close()
            self._stop.close()
            linux.set_name("pioletd-sampler")
            linux.die_with_parent(signal.SIGKILL)
            linux.become(self._account.pw_uid, self._account.pw_gid, [self._account.pw_gid])
            linux.die_with_parent(signal.SIGKILL)
            linux.no_new_privileges()
            self._sample(theirs)
        except Exception:  # noqa: BLE001 - logged, and the keeper starts another
            _log.exception("the sampler failed")
        finally:
            os._exit(1)

    def _serve(self, channel: socket.socket) -> bool:
        """Serve one sampler; return whether the daemon ends, else the sampler has ended."""
        with selectors.DefaultSelector() as selector:
            selector.register(channel, selectors.EVENT_READ)
            selector.register(self._stop, selectors.EVENT_READ)
            while True:
                ready = [key.fileobj for key, _ in selector.select(_POLL_S if self._writers or self._stuck else None)]
                self._reap()
                if self._stop in ready:
                    return True
                if channel in ready and not self._take(channel):
                    return False

    def _take(self, channel: socket.socket) -> bool:
        with packets.receive(channel, MESSAGE_MAX, 1) as packet:
            if packet.data in (b"", HUNG):
                return False
            try:
                self._act(decode(packet.data), packet.descriptors)
            except (WireError, OSError) as error:
                _log.error("a step's samples are not written: %s", error)
        return True

    def _act(self, order: Order, descriptors: list[int]) -> None:
        if len(descriptors) != 1:
            raise WireError("a request of the sampler has no pipe")
        users = list(self._writers.values())
        if WRITERS.reached(order.uid, users):
            mine = users.count(order.uid)
            raise WireError(f"{mine} writers of uid {order.uid} are at work, of {len(users)} in all")
        self._start(order, descriptors[0])

    def _start(self, order: Order, source: int) -> None:
        pid = os.fork()
        if pid:
            self._writers[pid] = order.uid
            return
        status = 1
        try:
            os.setsid()
            linux.close_all_but({source, 2})
            linux.set_name("pioletd-writer")
            linux.become(order.uid, order.gid, order.groups)
            linux.no_new_privileges()
            os.nice(_NICE)
            os.umask(0o022)
            os.environ.clear()
            os.chdir("/")
            from piolet.samples.writer import write

            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # while it reads it listens, and what has come is finished
            write(source, order.directory, order.node, order.step, self._settings.node_mb * 1_000_000, self._summary)
            status = 0
        except Exception as error:  # noqa: BLE001 - it is the last thing that this process does
            _log.error("the samples for %s are not written: %s", order.directory, error)
        finally:
            os._exit(status)

    def _summary(self) -> Callable[[Node], bytes]:
        """Return what makes the sums of a node's samples: in the writer, as the user."""
        from piolet.score.overview import summary_of
        from piolet.score.peaks import from_file

        table = from_file(Path(self._settings.calibration)) if self._settings.calibration else None
        return lambda node: summary_of(node, table)

    def _reap(self) -> None:
        for pid in list(self._writers):
            if os.waitpid(pid, os.WNOHANG)[0]:
                del self._writers[pid]
        self._stuck = [pid for pid in self._stuck if not os.waitpid(pid, os.WNOHANG)[0]]


def decode(data: bytes) -> Order:
    """Return a request, every field checked. Raises WireError."""
    order = packets.decode(Order, data)
    if any(not 0 <= number < 1 << 32 for number in (order.uid, order.gid, *order.groups)):
        raise WireError("a request of the sampler has an impossible number")
    if order.uid == 0:
        # It is the sampler's word where files are written, and by whom.
        raise WireError("a step of root is not scored")
    texts = (order.directory, order.node, order.step)
    if any("\0" in text for text in texts) or "/" in order.node + order.step or not order.directory.startswith("/"):
        raise WireError("a request of the sampler has an impossible path")
    return order
