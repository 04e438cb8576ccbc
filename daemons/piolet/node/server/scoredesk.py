"""The sampler's process: takes announcements of scored steps and samples them all in one loop, without privileges.

A connection of slurmstepd is a step: START, then GPUS when its first task begins, then nothing until it ends. Sampling
begins with GPUS, so that the time in which a container is made is not the application's. Nothing is ever answered.

What is needed to go on after a restart stands in one small file a step; its slurmstepd, which the connection no longer
tells of, is then watched by a pidfd. The gap is in the data.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from piolet.api import Target
from piolet.base import files
from piolet.base.errors import PioletError, WireError
from piolet.node.scoring import HUNG, HUNG_GPUS, Order
from piolet.node.shares import Sparse
from piolet.samples import request
from piolet.samples.choose import HOST, choose
from piolet.samples.sampler import SampledStep, Sampler, Session, Sink
from piolet.slurm import gres
from piolet.steps import hierarchies, identity
from piolet.system import peer, processes
from piolet.transport import packets, wire
from piolet.transport.listener import Listener

_log = logging.getLogger("pioletd.sampler")

_STEPS_MAX = 512
_ACCEPTED_MAX = 64
_NOTE_MAX = 1 << 20
_DRAIN_S = 10.0
_DRAIN_POLL_S = 0.05
_WATCH_S, _HUNG_S, _HUNG_AGAIN_S = 1.0, 5.0, 600.0
_HUNG = f"its driver did not answer within {_HUNG_S:.0f} s"
_PIPE_BYTES = 1 << 20
_F_SETPIPE_SZ = 1031


@dataclass(frozen=True)
class StepNote:
    """What is kept of a step for a restart; `started` is when its slurmstepd, the process `peer`, was started.

    control_groups   of the step, as in Target
    nodes            how many the step has, 0: not known
    restarts         how often the job was requeued
    hung             GPUs that did not answer: their names among `gpus`, and their UUIDs where they are known
    """

    job: int
    step: int
    uid: int
    gid: int
    groups: list[int]
    node: str
    definition: str
    peer: int
    started: int | None
    control_groups: list[tuple[str, str]] = field(default_factory=list)
    gpus: list[str] = field(default_factory=list)
    nodes: int = 0
    restarts: int = 0
    hung: list[tuple[str, str]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The name of this run of the step."""
        return identity.run_name(self.job, self.step, self.restarts)


@dataclass
class _Scored:
    """A step: what it is watched by, and its session once it is sampled."""

    watch: socket.socket | int
    peer: int
    facts: StepNote | None = None
    session: Session | None = None


class ScoreDesk:
    """The loop. `keeper` is the pair's end; `files` a directory of the account's own."""

    def __init__(self, listener: socket.socket, keeper: socket.socket, files: Path, sampler: Sampler) -> None:
        self._keeper = keeper
        self._files = files
        self._sampler = sampler
        self._steps: list[_Scored] = []
        self._draining: list[tuple[Sink, float]] = []
        self._stop = False
        self._refused = Sparse(_log)
        self._selector = selectors.DefaultSelector()
        # Many at once: whoever connects in a loop must not keep the sampler from its samples.
        self._listener = Listener(self._selector, listener, self._take, _log, at_once=_ACCEPTED_MAX)
        self._selector.register(keeper, selectors.EVENT_READ, self._on_keeper)

    def run(self) -> None:
        """Serve until the keeper ends."""
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        self._recover()
        while not self._stop:
            for key, _ in self._selector.select(self._timeout()):
                act: Callable[[], None] = key.data
                act()
            self._sampler.tick()
            self._drain()

    def _watch(self) -> None:
        """End the sampler when a library does not return."""
        while True:
            time.sleep(_WATCH_S)
            if self.give_up():
                # Its descriptors stay open for as long as a thread is stuck in the kernel, so its end is told.
                with contextlib.suppress(OSError):
                    packets.send(self._keeper, HUNG)
                os._exit(1)

    def give_up(self) -> bool:
        """Return whether one opening, reading or closing takes too long.

        The next sampler then measures that step without the GPU that hung, or, where that is not known or hangs again,
        by its host's figures only.
        """
        busy = self._sampler.busy
        if busy is None or self._sampler.clock.monotonic_ns() - busy[1] < _HUNG_S * 1e9:
            return False
        asked = self._sampler.asked
        for facts in [one.facts for one in self._steps if one.facts is not None and one.facts.name == busy[0]]:
            named = {name for name, _ in facts.hung}
            if asked is not None and asked[0] in facts.gpus and asked[0] not in named:
                _log.error("step %s: GPU %s does not answer; the step is measured without it", busy[0], asked[0])
                self._note(replace(facts, hung=[*facts.hung, asked]))
                self._remember(asked[0])
                continue
            _log.error("step %s: its GPUs' library does not answer; it goes on without GPU counters", busy[0])
            wish = replace(request.from_json(facts.definition.encode()), collector="host")
            hung = [*facts.hung, *((name, "") for name in facts.gpus if name not in named)]
            self._note(replace(facts, definition=wish.to_json().decode(), hung=hung))
        return True

    def _remember(self, gpu: str) -> None:
        """Note a GPU that hung: the next steps do without it for a while, and without a sampler that hangs, too."""
        with contextlib.suppress(OSError):
            path = self._files / HUNG_GPUS
            known = json.dumps(self._hung_lately() | {gpu: time.time()})
            files.write_whole(str(path), known.encode(), f"{path}.new")

    def _hung_lately(self) -> dict[str, float]:
        try:
            with (self._files / HUNG_GPUS).open("rb") as file:
                known = json.loads(file.read(_NOTE_MAX))
            return {str(gpu): float(at) for gpu, at in known.items() if 0 <= time.time() - at < _HUNG_AGAIN_S}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}

    def _timeout(self) -> float | None:
        due = self._sampler.next_due()
        waits = [] if due is None else [(due - self._sampler.clock.monotonic_ns()) / 1e9]
        if self._draining:
            waits.append(_DRAIN_POLL_S)
        return max(0.0, min(waits)) if waits else None

    def _on_keeper(self) -> None:
        self._stop = not self._keeper.recv(1)

    # -- announcements

    def _take(self, channel: socket.socket, who: peer.Peer) -> None:
        pid, uid, _ = who
        if uid != 0 or len(self._steps) >= _STEPS_MAX:
            why = "too many steps" if uid == 0 else "it is no Slurm"
            self._refused.error("process %d of uid %d is refused: %s", pid, uid, why)
            channel.close()
            return
        # A task's message then says which process the task is, and so in which control group the step runs.
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        scored = _Scored(channel, pid)
        self._steps.append(scored)
        self._selector.register(channel, selectors.EVENT_READ, lambda: self._on_plugin(scored, channel))

    def _on_plugin(self, scored: _Scored, channel: socket.socket) -> None:
        try:
            data, extra, _, _ = channel.recvmsg(wire.START_MAX + 1, socket.CMSG_SPACE(peer.UCRED.size))
        except BlockingIOError:
            return
        except OSError:
            data, extra = b"", []
        if not data:
            self._end(scored)
            return
        try:
            if scored.facts is None:
                scored.facts = _facts(wire.decode_start(data, wire.PLUGIN_SCORE), scored.peer)
            elif scored.session is None:
                gpus = wire.decode_gpus(data)
                pid = next((peer.UCRED.unpack(value)[0] for _, kind, value in extra if kind == 2), 0)
                scored.facts = replace(
                    scored.facts,
                    control_groups=step_groups(pid),
                    gpus=list(gres.by_file(gpus.names, scored.facts.node, os.environ)),
                    nodes=gpus.nodes,
                    restarts=gpus.restarts,
                )
                self._begin(scored, scored.facts)
        except Exception as error:  # noqa: BLE001 - what comes is a user's word, and this process is everybody's
            _log.error("a step is not scored: %s: %s", type(error).__name__, error)
            self._end(scored)

    # -- sampling

    def _begin(self, scored: _Scored, facts: StepNote) -> None:
        wish = request.from_json(facts.definition.encode())
        known = dict(facts.hung)
        lately = [(name, "") for name in self._hung_lately() if name in facts.gpus and name not in known]
        facts = replace(facts, hung=[*facts.hung, *lately])
        hung = dict(facts.hung)
        left = tuple(name for name in facts.gpus if name not in hung)
        target = Target(gpus=left, groups=tuple(facts.control_groups), period=wish.period)
        collectors, why_not = choose(target, wish.collector, lambda one: self._sampler.working(facts.name, one))
        unseen = [(uuid or name, _HUNG) for name, uuid in facts.hung]
        if hung and not left:
            why_not = dict.fromkeys((name for name in why_not if name != HOST), f"the GPUs did not answer: {_HUNG}")
        elif wish.collector != HOST and not any(collector.devices for collector in collectors):
            unseen += [(name, "no source could read it") for name in left]
        step = SampledStep(
            str(facts.job),
            str(facts.step),
            facts.node,
            facts.uid,
            wish.label,
            nodes=facts.nodes,
            restarts=facts.restarts,
            allocated=None if wish.collector == HOST and not hung else len(facts.gpus),
            unseen=tuple(unseen),
        )
        write = -1
        try:
            write = self._order_writer(facts, wish)
            scored.session = self._sampler.add(step, collectors, wish.period, Sink(write), why_not)
        except Exception:
            for collector in collectors:
                with contextlib.suppress(Exception), self._sampler.working(facts.name, collector):
                    collector.close()
            if write >= 0:
                os.close(write)
            raise
        self._note(facts)
        _log.debug("step %s is sampled: %s", facts.name, ", ".join(c.name for c in collectors))

    def _order_writer(self, facts: StepNote, wish: request.Wish) -> int:
        """Return the end of a pipe that a writer, which is the step's user, takes samples from. Raises PioletError."""
        directory = wish.directory(facts.job, facts.step, facts.restarts)
        order = Order(facts.uid, facts.gid, facts.groups, directory, facts.node, facts.name)
        try:
            read, write = os.pipe2(os.O_CLOEXEC)
            try:
                packets.send(self._keeper, packets.encode(order), [read])
            except OSError:
                os.close(write)
                raise
            finally:
                os.close(read)
        except OSError as error:
            raise PioletError(f"its samples cannot be written: {error.strerror}") from None
        with contextlib.suppress(OSError):
            # So much is taken at once while the writer waits for a disk.
            fcntl.fcntl(write, _F_SETPIPE_SZ, _PIPE_BYTES)
        return write

    def _end(self, scored: _Scored) -> None:
        self._steps.remove(scored)
        self._selector.unregister(scored.watch)
        if isinstance(scored.watch, int):
            os.close(scored.watch)
        else:
            scored.watch.close()
        if scored.facts is not None:
            # First: if the last reading hangs, there is no step that a next sampler should go on with.
            with contextlib.suppress(OSError):
                (self._files / scored.facts.name).unlink()
        if scored.session is not None:
            self._sampler.remove(scored.session)
            self._draining.append((scored.session.sink, time.monotonic() + _DRAIN_S))
            scored.session = None

    def _drain(self) -> None:
        """Give what is left to the writers whose steps have ended; a writer that takes nothing is left alone then."""
        for sink, deadline in list(self._draining):
            if sink.flush() or sink.broken or time.monotonic() > deadline:
                os.close(sink.fd)
                self._draining.remove((sink, deadline))

    # -- restarts

    def _note(self, facts: StepNote) -> None:
        path = self._files / facts.name
        try:
            files.write_whole(str(path), json.dumps(asdict(facts)).encode(), f"{path}.new")
        except OSError as error:
            _log.warning("after a restart step %s would not be sampled any more: %s", facts.name, error.strerror)

    def _recover(self) -> None:
        """Go on with the steps of an earlier sampler; forget those that have ended."""
        for path in [path for path in self._files.iterdir() if not path.name.startswith(".")]:
            try:
                with path.open("rb") as file:
                    facts = packets.decode(StepNote, file.read(_NOTE_MAX))
                if path.name != facts.name:
                    raise ValueError(path.name)  # half of a note: the step has another
                pidfd = os.pidfd_open(facts.peer)
            except (OSError, ValueError, OverflowError, WireError):
                path.unlink(missing_ok=True)
                continue
            # Its number may be another process's by now.
            if not processes.still_runs(facts.peer, facts.started):
                os.close(pidfd)
                path.unlink(missing_ok=True)
                continue
            scored = _Scored(pidfd, facts.peer, facts)
            self._steps.append(scored)
            self._selector.register(pidfd, selectors.EVENT_READ, lambda s=scored: self._end(s))
            try:
                self._begin(scored, facts)
                _log.info("step %s is sampled again", facts.name)
            except Exception as error:  # noqa: BLE001 - one step's fault must not end the sampling of all
                _log.error("step %s is not scored any more: %s: %s", facts.name, type(error).__name__, error)
                self._end(scored)


def _facts(start: wire.Start, peer: int) -> StepNote:
    """Return what START says; a definition that is malformed is refused now. Raises PioletError."""
    request.from_json(start.definition)
    return StepNote(
        start.job,
        start.step,
        start.uid,
        start.gid,
        start.groups,
        start.node.partition(".")[0],
        start.definition.decode("utf-8"),
        peer,
        processes.start_time(peer),
    )


def step_groups(pid: int) -> list[tuple[str, str]]:
    """Return the control groups of the step that a task belongs to, as in Target; none where Slurm makes none."""
    try:
        groups, seen = hierarchies.of(pid), hierarchies.own_mounts()
    except OSError:
        return []
    return hierarchies.of_step(groups, seen)
