"""pioletd's root half: a closed table of operations (requests.py) for the unprivileged server, and nothing else.

It never parses what a user wrote, never opens a path that a user named, and never waits for a process that a user
could stop: every wait is an event with a deadline, or (in mounts.py) a few seconds at most for a child that is root. It
imports the standard library, piolet.node, piolet.peer and piolet.errors only.

An image is mounted by a child of root, a container is built by a child that has become the job's user; the monitor
writes that child's id maps and opens its namespaces. When the step ends, what still runs in the container is ended.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import logging
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from piolet import peer
from piolet.errors import WireError
from piolet.node import leftovers, worker
from piolet.node.endings import Endings
from piolet.node.mounts import Images, explain, write_map
from piolet.node.requests import MESSAGE_MAX, Announced, Build, End, decode, is_step, take_start
from piolet.node.state import Known, StepFiles
from piolet.node.workers import Workers

_log = logging.getLogger("pioletd.monitor")

_WORKER_DIED = "the process that built the container died"
_MAP_BYTES_MAX = 4000  # the kernel takes less than a page
_WORKERS_MAX = 64
_POLL_S, _POLL_SOON_S = 1.0, 0.05


@dataclass
class Step:
    """A step with a container, being built or running."""

    order: Build
    who: Announced
    deadline: float
    pid: int = 0
    channel: socket.socket | None = None
    user_ns: int = -1
    ready: bool = False
    marks: list[list[object]] = field(default_factory=list)


@dataclass
class Mounting:
    """An image that a child is mounting, and the steps that wait for it."""

    pid: int
    pidfd: int
    path: str
    identity: list[int]
    deadline: float
    waiting: list[int]


class Monitor:
    """The event loop. `channel` is the pair's end, `listener` the node's socket's file, `place` as in leftovers."""

    def __init__(
        self,
        channel: socket.socket,
        images: Images,
        files: StepFiles,
        means: worker.Means,
        listener: peer.File,
        image_idle_s: float,
        place: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._channel = channel
        self._images = images
        self._files = files
        self._means = means
        self._listener = listener
        self._image_idle_s = image_idle_s
        self._clock = clock
        self._place = place
        self._steps: dict[int, Step] = {}
        self._mounting: dict[str, Mounting] = {}
        self._endings = Endings(files)
        self._queue: list[int] = []
        self._workers = Workers()
        self._next_expiry = 0.0
        self._selector = selectors.DefaultSelector()
        channel.setblocking(False)
        self._selector.register(channel, selectors.EVENT_READ, self._on_server)
        self._stop, self._well = False, True

    def run(self, wakeup: int, siblings: dict[int, str]) -> bool:
        """Serve until the server ends or a byte comes from the descriptor `wakeup` (a signal).

        `siblings` are the pidfds of other processes of pioletd, with their names. Returns False when one of them has
        ended: then pioletd is to be started again.
        """
        for pidfd, name in siblings.items():
            self._selector.register(pidfd, selectors.EVENT_READ, lambda n=name: self._on_sibling(n))
        self._selector.register(wakeup, selectors.EVENT_READ, self._on_signal)
        self._recover()
        self._workers.keep_spare()
        while not self._stop:
            for key, _ in self._selector.select(self._timeout()):
                key.data()
            self._tick()
        return self._well

    # -- requests

    def _on_sibling(self, name: str) -> None:
        _log.error("%s has ended; so does the monitor", name)
        self._stop, self._well = True, False

    def _on_signal(self) -> None:
        self._stop = True

    def _on_server(self) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._channel, MESSAGE_MAX, 1)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data, descriptors = b"", []  # it has ended with answers unread
        try:
            if not data:
                _log.info("the server has ended; so does the monitor")
                self._stop = True
                return
            request = decode(data)
            if isinstance(request, End):
                self._end(request.key)
            elif request.key in self._steps:
                _log.error("the server used the number %d twice", request.key)
            else:
                self._take(request, descriptors)
        except WireError as error:
            _log.error("%s", error)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _take(self, order: Build, descriptors: list[int]) -> None:
        if len(descriptors) != 1:
            raise WireError("a request to build came without the step's connection")
        now = self._clock()
        try:
            connection = socket.socket(fileno=descriptors[0])
            # Closed before anything is forked: slurmstepd's tasks are to see when pioletd ends.
            descriptors.clear()
            with connection:
                who = take_start(connection, self._listener)
            self._steps[order.key] = Step(order, who, now + order.timeout_s, marks=[["monitor", now]])
            self._build(order, now)
        except WireError as error:
            self._answer({"key": order.key, "error": error.message, "hint": error.hint or ""}, [])
        except OSError as error:
            self._fail(order.key, f"cannot start building the container: {error.strerror}", None)

    def _build(self, order: Build, now: float) -> None:
        if order.digest is None or self._images.lookup(order.digest, order.identity, now) is not None:
            self._enqueue(order.key)
            return
        mounting = self._mounting.get(order.digest)
        if mounting is not None:
            mounting.waiting.append(order.key)
            return
        pid, path = self._images.start_mount(order.digest, order.identity)
        pidfd = os.pidfd_open(pid)
        deadline = now + order.timeout_s
        self._mounting[order.digest] = Mounting(pid, pidfd, path, order.identity, deadline, [order.key])
        self._selector.register(pidfd, selectors.EVENT_READ, lambda: self._on_mounted(order.digest or ""))

    def _on_mounted(self, digest: str) -> None:
        mounting = self._mounting.pop(digest)
        self._selector.unregister(mounting.pidfd)
        os.close(mounting.pidfd)
        _, status = os.waitpid(mounting.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        if code == 0:
            self._images.mounted(digest, mounting.identity, mounting.path, self._clock())
            for key in mounting.waiting:
                if key in self._steps:
                    self._enqueue(key)
            return
        self._images.failed(mounting.path)
        why, hint = explain(code)
        for key in mounting.waiting:
            self._fail(key, f"cannot mount the image {digest[:19]}: {why}", hint)

    # -- workers

    def _enqueue(self, key: int) -> None:
        self._queue.append(key)
        self._start_queued()

    def _start_queued(self) -> None:
        while self._queue and sum(1 for step in self._steps.values() if step.channel) < _WORKERS_MAX:
            step = self._steps.get(self._queue.pop(0))
            if step is not None:
                self._start_worker(step)

    def _start_worker(self, step: Step) -> None:
        order, who, image = step.order, step.who, None
        try:
            if order.digest is not None:
                mounted = self._images.lookup(order.digest, order.identity, self._clock())
                if mounted is None:
                    self._fail(order.key, f"the image {order.digest[:19]} was replaced just now", "start it again")
                    return
                image = self._images.view(mounted, who.uid, who.gid)
            step.marks.append(["mount the image", self._clock()])
            todo = worker.Order(who.uid, who.gid, who.groups, order.plan, self._means)
            step.pid, step.channel = self._workers.give(todo, image)
        except OSError as error:
            hint = "idmapped SquashFS mounts need Linux 6.2 or newer" if error.errno == errno.EINVAL else None
            if error.filename == "unshare":
                hint = worker.NO_NAMESPACE_HINT
            self._fail(order.key, f"cannot start building the container: {error.strerror}", hint)
            return
        finally:
            if image is not None:
                os.close(image)
        self._selector.register(step.channel, selectors.EVENT_READ, lambda: self._on_worker(step))

    def _on_worker(self, step: Step) -> None:
        if step.channel is None:
            return  # the step has ended in the same round of the loop
        try:
            data = step.channel.recv(MESSAGE_MAX)
        except OSError:
            data = b""
        try:
            if data == worker.UNSHARED:
                self._write_maps(step)
                step.channel.send(worker.MAPPED)
                return
            answer = json.loads(data) if data else {"error": _WORKER_DIED, "hint": "the node may be short of memory"}
            if "error" in answer:
                self._fail(step.order.key, str(answer["error"])[:900], str(answer.get("hint", ""))[:900])
                return
            self._ready(step, answer["marks"])
        except (OSError, ValueError, KeyError) as error:
            self._fail(step.order.key, f"cannot take over the container: {error}", None)

    def _write_maps(self, step: Step) -> None:
        who = step.who
        # From here on, whatever comes to be in the container can be ended with it.
        step.user_ns = os.open(f"/proc/{step.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        write_map(step.pid, "uid_map", [(who.uid, who.uid)])
        # With the supplementary groups mapped, the user sees them by name; setgroups stays denied, so
        # that a group that takes access away cannot be dropped.
        with open(f"/proc/{step.pid}/setgroups", "w", encoding="ascii") as file:
            file.write("deny")
        pairs: list[tuple[int, int]] = []
        size = 0
        for group in dict.fromkeys([who.gid, *who.groups]):
            size += len(f"{group} {group} 1\n")
            if size < _MAP_BYTES_MAX and len(pairs) < 340:
                pairs.append((group, group))
        write_map(step.pid, "gid_map", pairs)

    def _ready(self, step: Step, marks: list[list[object]]) -> None:
        namespaces: list[int] = []
        try:
            for kind in ("user", "mnt"):
                namespaces.append(os.open(f"/proc/{step.pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC))
            step.ready = True
            self._answer({"key": step.order.key, "ok": True, "marks": [*step.marks, *marks]}, namespaces)
        finally:
            for descriptor in namespaces:
                os.close(descriptor)
        self._let_go(step)
        self._files.write(step.who.step, step.who.peer)

    def _let_go(self, step: Step) -> None:
        """Close the worker's channel, at which it ends."""
        if step.channel is not None:
            with contextlib.suppress(KeyError):
                self._selector.unregister(step.channel)
            step.channel.close()
            step.channel = None
            self._start_queued()

    def _fail(self, key: int, message: str, hint: str | None) -> None:
        step = self._steps.pop(key, None)
        if step is None:
            return
        self._clear(step)
        self._answer({"key": key, "error": message, "hint": hint or ""}, [])

    def _clear(self, step: Step) -> None:
        """End the step's worker, and whatever is in its container."""
        if step.channel is not None:
            self._workers.kill(step.pid)
        self._let_go(step)
        if step.user_ns >= 0:
            self._endings.empty(step.who.step, step.user_ns)
            step.user_ns = -1

    def _answer(self, value: dict[str, object], descriptors: list[int]) -> None:
        try:
            socket.send_fds(self._channel, [json.dumps(value).encode()], descriptors)
        except (BrokenPipeError, ConnectionResetError):
            self._stop = True  # the server has ended; so do we
        except BlockingIOError:
            _log.error("the server takes no answers; so the monitor ends")
            self._stop, self._well = True, False

    # -- ends

    def _end(self, key: int) -> None:
        step = self._steps.pop(key, None)
        if step is None:
            return
        self._clear(step)

    # -- after a restart

    def _recover(self) -> None:
        """Take up the steps of an earlier daemon: their containers run on, and end with their slurmstepd."""
        running = leftovers.stepds()
        known = self._files.read()
        prefix = leftovers.label("", self._place)
        steps = {k.step: k for k in known}
        for label in leftovers.in_containers():
            step = label.removeprefix(prefix)
            # A user can give a mount of their own any name: what is not a step's is nothing to us.
            if label.startswith(prefix) and is_step(step):
                steps.setdefault(step, Known(step, running.get(step, 0), None))
        for step, one in steps.items():
            peer = one.peer if one.alive() else running.get(step, 0)
            try:
                pidfd = os.pidfd_open(peer) if peer else -1
            except OSError:
                pidfd = -1
            if pidfd < 0:
                self._on_stepd_gone(step, pidfd)
                continue
            _log.info("step %s goes on; it is watched by its slurmstepd, process %d", step, peer)
            self._selector.register(pidfd, selectors.EVENT_READ, lambda s=step, d=pidfd: self._on_stepd_gone(s, d))

    def _on_stepd_gone(self, step: str, pidfd: int) -> None:
        if pidfd >= 0:
            self._selector.unregister(pidfd)
            os.close(pidfd)
        self._endings.empty_labelled(step, leftovers.label(step, self._place), self._clock())

    # -- time

    def _timeout(self) -> float:
        now = self._clock()
        look = self._endings.next_look()
        times = [] if look is None else [look]
        times += [step.deadline for step in self._steps.values() if not step.ready]
        if self._endings.busy():
            times.append(now + _POLL_SOON_S)
        times.append(now + _POLL_S if self._workers.ending() or self._mounting else self._next_expiry)
        return max(0.0, min(times) - now)

    def _tick(self) -> None:
        if not self._stop and not any(step.channel for step in self._steps.values()):
            self._workers.keep_spare()
        self._workers.collect()
        now = self._clock()
        for key, step in list(self._steps.items()):
            if not step.ready and now >= step.deadline:
                seconds = step.order.timeout_s
                self._fail(key, f"the container was not ready after {seconds:.0f} s", "is a file system hung?")
        for mounting in self._mounting.values():
            if now >= mounting.deadline:
                mounting.deadline = now + 3600.0
                os.kill(mounting.pid, signal.SIGKILL)
        self._endings.tick(now)
        if now >= self._next_expiry:
            self._next_expiry = now + min(60.0, max(_POLL_S, self._image_idle_s))
            self._images.expire(now - self._image_idle_s)
            # It does not run by itself (main.py); what was there at the start is frozen and not touched.
            gc.collect()
