"""pioletd's root half: a closed table of operations (requests.py) for the unprivileged server, and nothing else.

It never parses what a user wrote, never opens a path that a user named, and never waits for a process that a user
could stop: every wait is an event with a deadline, or (mountedimages.py) some seconds at most for a child that is root.
It imports nothing that parses users' texts (pyproject.toml). It is alone in its mount namespace.

An image is mounted by a child of root, a container is built by a child that has become the job's user; the monitor
writes that child's id maps and opens its namespaces. When the step ends, what still runs in the container is ended.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import selectors
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence

from piolet.base.errors import PioletError, WireError
from piolet.container import labels, worker
from piolet.node.requests import Announced, Answer, Attach, Build, End, decode, take_start
from piolet.node.root import earlier, idmaps
from piolet.node.root.attachments import Attachments
from piolet.node.root.endings import Endings, Remains
from piolet.node.root.mountedimages import Images, View, explain
from piolet.node.root.state import Known, StepFiles
from piolet.node.root.steps import Awaited, Step
from piolet.node.root.workers import SPARE_S, Workers
from piolet.steps import jobnamespaces
from piolet.system import peer, usernamespaces
from piolet.system.children import Child
from piolet.transport import packets

_log = logging.getLogger("pioletd.monitor")

_WORKER_DIED = "the process that built the container died"
_MARKS_MAX = 32
# Workers at one time: a user can stop their own, and each then stays until its step's deadline.
_WORKERS_MAX, _WORKERS_PER_USER_MAX = 256, 16
_EXPIRY_S = 1.0
_MOUNT_MAX_S = 1800.0


class Monitor:
    """The event loop. `channel` is the pair's end, `listener` the node's socket's file, `place` as in leftovers.

    `namespace` is a descriptor of the mount namespace in which workers build: the node's, without images. `home` is the
    number of the node's own, to tell from it where a slurmstepd is.
    """

    def __init__(
        self,
        channel: socket.socket,
        images: Images,
        files: StepFiles,
        means: worker.Means,
        listener: peer.File,
        image_idle_s: float,
        place: str,
        namespace: int,
        home: int,
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
        self._home = jobnamespaces.Home(home)
        self._steps: dict[int, Step] = {}
        self._mounting: dict[tuple[str, int, int], Awaited] = {}
        self._queue: list[int] = []
        self._building: Counter[int] = Counter()  # by user
        self._last_start = 0.0
        self._next_expiry = 0.0
        self._selector = selectors.DefaultSelector()
        self._endings = Endings(files, self._selector, clock)
        self._attachments = Attachments(self._endings, clock)
        self._workers = Workers(self._selector, namespace)
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
        earlier.take_up(self._files, self._endings, self._attachments, self._place, self._selector)
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
            packet = packets.receive(self._channel, packets.MESSAGE_MAX, 1)
        except BlockingIOError:
            return
        with packet:
            if not packet.data:
                _log.info("the server has ended; so does the monitor")
                self._stop = True
                return
            try:
                request = decode(packet.data)
                if isinstance(request, End):
                    self._end(request.key)
                elif isinstance(request, Attach):
                    self._attach(request, packet.descriptors)
                elif request.key in self._steps:
                    _log.error("the server used the number %d twice", request.key)
                else:
                    self._take(request, packet.descriptors)
            except WireError as error:
                _log.error("%s", error)

    def _who(self, descriptors: list[int]) -> Announced:
        if len(descriptors) != 1:
            raise WireError("a request came without the step's connection")
        connection = socket.socket(fileno=descriptors[0])
        # Closed before anything is forked: slurmstepd's tasks are to see when pioletd ends.
        descriptors.clear()
        with connection:
            return take_start(connection, self._listener)

    def _attach(self, order: Attach, descriptors: list[int]) -> None:
        try:
            who = self._who(descriptors)
            # The latest of that name: a job that was requeued has it again.
            target = next((one for one in reversed(self._steps.values()) if one.who.step == order.to), None)
            self._answer(*self._attachments.take(order, who, target))
        except PioletError as error:
            self._answer(Answer(order.key, error.message, error.hint or ""))
        except OSError as error:
            self._answer(Answer(order.key, f"cannot enter the container of step {order.to}: {error.strerror}"))

    def _take(self, order: Build, descriptors: list[int]) -> None:
        now = self._clock()
        try:
            who = self._who(descriptors)
            step = Step(order, who, now + order.timeout_s, marks=[("monitor", now)])
            self._steps[order.key] = step
            step.find_namespace(self._home)
            self._build(step, now)
        except PioletError as error:
            self._steps.pop(order.key, None)
            self._answer(Answer(order.key, error.message, error.hint or ""))
        except OSError as error:
            self._fail(order.key, f"cannot start building the container: {error.strerror}", None)

    def _build(self, step: Step, now: float) -> None:
        refusal = self._images.refusal(step.wanted is not None)
        if refusal is not None:
            self._fail(step.order.key, *refusal)
            return
        if step.wanted is None or self._images.lookup(step.wanted, now) is not None:
            self._enqueue(step.order.key)
            return
        key = self._images.key(step.wanted)
        awaited = self._mounting.get(key)
        if awaited is not None:
            awaited.waiting.append(step.order.key)
            return
        mounting = self._images.start_mount(step.wanted)
        self._mounting[key] = Awaited(mounting, now + _MOUNT_MAX_S, [step.order.key])
        self._selector.register(mounting.child.pidfd, selectors.EVENT_READ, lambda: self._on_mounted(key))

    def _on_mounted(self, key: tuple[str, int, int]) -> None:
        awaited = self._mounting.pop(key)
        mounting = awaited.mounting
        self._selector.unregister(mounting.child.pidfd)
        code = mounting.child.collect()
        waiting = [self._steps[number] for number in awaited.waiting if number in self._steps]
        if code == 0:
            self._images.mounted(mounting, self._clock())
            for step in waiting:
                self._enqueue(step.order.key)
            return
        self._images.failed(mounting)
        why, hint = explain(code or 0)
        _log.error("the image %s is not mounted: %s", key[0], why)
        for step in waiting:
            self._fail(step.order.key, f"cannot mount the image {key[0][:19]}: {why}", hint)

    # -- workers

    def _enqueue(self, key: int) -> None:
        self._queue.append(key)
        self._start_queued()

    def _start_queued(self) -> None:
        """Start workers for those who wait, in turn, but for users who have too many at work."""
        left = []
        for place, key in enumerate(self._queue):
            if self._building.total() >= _WORKERS_MAX:
                left += self._queue[place:]
                break
            step = self._steps.get(key)
            if step is None:
                continue
            if self._building[step.who.uid] >= _WORKERS_PER_USER_MAX:
                left.append(key)
            else:
                self._start_worker(step)
        self._queue = left

    def _start_worker(self, step: Step) -> None:
        order, who, wanted = step.order, step.who, step.wanted
        view: View | None = None
        try:
            if wanted is not None:
                mounted = self._images.lookup(wanted, self._clock())
                if mounted is None:
                    self._fail(order.key, f"the image {wanted.digest[:19]} was replaced just now", "start it again")
                    return
                view = self._images.view(mounted, wanted)
            step.marks.append(("mount the image", self._clock()))
            served = view is not None and view.is_file
            stepd = who.peer if order.foreign or served else 0
            rooted = view is not None and not served and self._images.rooted
            label = labels.label(who.step, self._place) if rooted else ""
            todo = worker.WorkerOrder(
                who.uid,
                who.gid,
                who.groups,
                stepd,
                order.plan,
                self._means,
                served=served,
                label=label,
                helped=self._images.helped,
                own=step.namespace is not None,
            )
            image = None if view is None else view.descriptor
            step.worker, step.channel = self._workers.give(todo, image, step.namespace)
        except OSError as error:
            hint = usernamespaces.hint() if error.filename == "unshare" else None
            self._fail(order.key, f"cannot start building the container: {error.strerror}", hint)
            return
        finally:
            step.forget_namespace()
            if view is not None:
                os.close(view.descriptor)
        self._building[who.uid] += 1
        self._last_start = self._clock()
        self._selector.register(step.channel, selectors.EVENT_READ, lambda: self._on_worker(step))

    def _on_worker(self, step: Step) -> None:
        if step.channel is None or step.worker is None:
            return  # the step has ended in the same round of the loop
        try:
            data = step.channel.recv(packets.MESSAGE_MAX)
        except OSError:
            data = b""
        try:
            if data == worker.UNSHARED and step.remains is None:
                self._write_maps(step, step.worker)
                step.channel.send(worker.MAPPED)
                step.know_peer()
                return
            if not data:
                self._fail(step.order.key, _WORKER_DIED, "the node may be short of memory")
                return
            built = packets.decode(worker.Built, data)
            if built.error or step.remains is None:
                self._fail(step.order.key, built.error[:900] or _WORKER_DIED, built.hint[:900])
                return
            self._ready(step, step.worker, built)
        except (OSError, WireError) as error:
            self._fail(step.order.key, f"cannot take over the container: {error}", None)

    def _write_maps(self, step: Step, child: Child) -> None:
        # From here on, whatever comes to be in the container can be ended with it.
        step.remains = Remains(Known(step.who.step, step.who.peer, None), child.open("ns/user"))
        idmaps.write(child, step.who, as_root=step.order.remapped)

    def _ready(self, step: Step, child: Child, built: worker.Built) -> None:
        for kind in ("user", "mnt"):
            step.inside = (*step.inside, child.open(f"ns/{kind}"))
        step.ready, step.start = True, built.start[:4096]
        marks = [*step.marks, *built.marks[:_MARKS_MAX]]
        answer = Answer(step.order.key, marks=marks, made_in=step.made_in, start=step.start)
        self._answer(answer, step.inside)
        self._let_go(step)
        known = step.known()
        if known is not None:
            self._files.write(known)

    def _let_go(self, step: Step) -> None:
        """Close the worker's channel, at which it ends."""
        if step.channel is not None:
            with contextlib.suppress(KeyError):
                self._selector.unregister(step.channel)
            step.channel.close()
            step.channel = None
            self._building[step.who.uid] -= 1
            self._building += Counter()  # forget those who have none
            self._start_queued()

    def _fail(self, key: int, message: str, hint: str | None) -> None:
        step = self._steps.pop(key, None)
        if step is None:
            return
        self._clear(step)
        self._answer(Answer(key, message, hint or ""))

    def _clear(self, step: Step) -> None:
        """End the step's worker, and whatever is in its container."""
        step.forget_namespace()
        step.leave()
        if step.channel is not None and step.worker is not None:
            step.worker.kill()
        self._let_go(step)
        if step.remains is not None:
            self._endings.empty(step.remains)
            step.remains = None
            self._attachments.over(step.who.step)

    def _answer(self, answer: Answer, descriptors: Sequence[int] = ()) -> None:
        try:
            packets.send(self._channel, packets.encode(answer), descriptors)
        except (BrokenPipeError, ConnectionResetError):
            self._stop = True  # the server has ended; so do we
        except BlockingIOError:
            _log.error("the server takes no answers; so the monitor ends")
            self._stop, self._well = True, False

    # -- ends

    def _end(self, key: int) -> None:
        self._attachments.end(key)
        step = self._steps.pop(key, None)
        if step is not None:
            self._clear(step)

    # -- time

    def _timeout(self) -> float:
        now = self._clock()
        times = [self._next_expiry]
        times += [due for due in (self._endings.next_due(), self._attachments.next_due()) if due is not None]
        times += [step.deadline for step in self._steps.values() if not step.ready]
        times += [awaited.deadline for awaited in self._mounting.values()]
        times += self._workers.due(self._last_start)
        return max(0.0, min(times) - now)

    def _tick(self) -> None:
        now = self._clock()
        if not self._stop and now >= self._last_start + SPARE_S and not self._workers.keep_spare():
            self._last_start = now  # not at once again
        for key, step in list(self._steps.items()):
            if not step.ready and now >= step.deadline:
                self._fail(key, *self._too_late(step))
        for awaited in self._mounting.values():
            if now >= awaited.deadline:
                awaited.deadline = now + _MOUNT_MAX_S
                awaited.mounting.child.kill()
        self._attachments.tick()
        self._endings.tick()
        if now >= self._next_expiry:
            self._next_expiry = now + min(60.0, max(_EXPIRY_S, self._image_idle_s))
            self._images.expire(now - self._image_idle_s)
            # It does not run by itself (main.py); what was there at the start is frozen and not touched.
            gc.collect()

    def _too_late(self, step: Step) -> tuple[str, str]:
        """Return what to say of a step whose container is not ready in time, and a hint."""
        seconds = f"the container was not ready after {step.order.timeout_s:.0f} s"
        awaited = None if step.wanted is None else self._mounting.get(self._images.key(step.wanted))
        if awaited is not None:
            return (
                f"{seconds}: the image is still being {awaited.mounting.doing}",
                "that goes on: start the step again later; or is the store's file system hung?",
            )
        return seconds, "is a file system hung?"
