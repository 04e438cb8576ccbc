"""pioletd's unprivileged half: listens to the plugins, decides, and asks the monitor for what needs root.

One connection is one step's life: START, then READY or ERROR, then silence until slurmstepd ends and the connection
with it. Whoever is not root is refused. Looks into the store and the user database happen in threads, of which each
has its own, so that a hung one fails the steps that need it, in time, and no other.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pwd
import selectors
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from piolet.base import logs
from piolet.base.errors import PioletError
from piolet.base.files import identity_of
from piolet.container import labels
from piolet.container.entries import Additions
from piolet.container.planner import make_plan
from piolet.environment import later
from piolet.environment.definition import from_json
from piolet.images.store import locate
from piolet.node.requests import Answer, Attach, Build, End, encode
from piolet.node.server import attaching
from piolet.node.server.connection import Connection
from piolet.node.server.furnisher import Furnisher
from piolet.node.server.slurmspool import SlurmSpool
from piolet.node.settings import Settings
from piolet.steps import identity
from piolet.system.peer import Peer
from piolet.transport import packets, wire
from piolet.transport.listener import Listener, Refusals
from piolet.transport.packets import MESSAGE_MAX

_log = logging.getLogger("pioletd")

_CONNECTIONS_MAX = 4096
_THREADS = 8
_STORE, _USERS, _HOOKS = "image store", "user database", "search for what hooks need"
_TIMEOUT_MARGIN_S = 1.0


class Server:
    """The event loop. `listener` is the node's socket, `monitor` the pair's end.

    `desk` adds others to the loop; `refused` is told of steps whose container could not be started.
    """

    def __init__(
        self,
        listener: socket.socket,
        monitor: socket.socket,
        config: Settings,
        place: str,
        desk: Callable[[selectors.BaseSelector], object] | None = None,
        refused: Callable[[wire.Start, str | None, str], None] | None = None,
    ) -> None:
        self._monitor = monitor
        self._config = config
        self._place = place
        self._refused = refused
        self._spool = SlurmSpool()
        self._connections: dict[int, Connection] = {}
        self._next_key = 1
        self._threads = {name: ThreadPoolExecutor(_THREADS, name) for name in (_STORE, _USERS)}
        self._furnisher = Furnisher(config.hooks)
        self._waiting: dict[int, Connection] = {}
        self._done: list[int] = []
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._selector = selectors.DefaultSelector()
        self._refusals = Refusals(self._selector)
        self._stop = False
        if desk is not None:
            desk(self._selector)
        Listener(self._selector, listener, self._take, _log)
        self._watch(monitor, self._on_monitor)
        self._watch(self._wake_read, self._on_done)

    def run(self) -> None:
        """Serve until the monitor ends."""
        while not self._stop:
            for key, _ in self._selector.select(self._timeout()):
                key.data()
            self._give_up()

    def _watch(self, what: socket.socket | int, act: Callable[[], None]) -> None:
        self._selector.register(what, selectors.EVENT_READ, act)

    # -- plugins

    def _take(self, channel: socket.socket, who: Peer) -> None:
        if who.uid != 0:
            what, hint = "only Slurm, as root, may announce a step to pioletd", "use srun --environment=FILE"
            self._refusals.refuse(channel, wire.encode_error(what, hint))
            return
        if len(self._connections) >= _CONNECTIONS_MAX:
            what = f"pioletd serves {_CONNECTIONS_MAX} steps on this node already"
            self._refusals.refuse(channel, wire.encode_error(what, None))
            return
        connection = Connection(self._next_key, channel, who.pid)
        self._next_key += 1
        self._connections[connection.key] = connection
        self._watch(channel, lambda: self._on_plugin(connection))

    def _on_plugin(self, connection: Connection) -> None:
        # It stays there: of a step with a container, the monitor reads for itself whose it is.
        data = _peek(connection.channel)
        if data is None:
            return
        if not data:
            self._close(connection)
            return
        if connection.start is not None:
            self._told(connection, connection.start, data)
            return
        connection.began = time.monotonic()
        try:
            start = wire.decode_start(data)
            connection.start = start
            connection.definition = later.finish(from_json(start.definition), start.job, start.node)
            _log.debug("step %d.%d of uid %d: start", start.job, start.step, start.uid)
            attaches = bool(connection.definition.attach)
            to = attaching.prepare(connection, self._connections.values()) if attaches else ""
            if connection.definition.image is None and not attaches:
                self._ready(connection, [])
                return
            connection.pidfd = os.pidfd_open(connection.pid)
        except PioletError as error:
            self._fail(connection, error)
            return
        except OSError as error:
            self._fail(connection, PioletError(f"cannot watch the step's slurmstepd: {error.strerror}"))
            return
        self._selector.unregister(connection.channel)
        self._watch(connection.pidfd, lambda: self._close(connection))
        if attaches:
            connection.asked, connection.container = True, to
            self._ask(encode(Attach(connection.key, to)), [connection.channel.fileno()])
        else:
            self._look_up(connection, start)

    def _told(self, connection: Connection, start: wire.Start, data: bytes) -> None:
        """A task says, as the user, why it did not start; what we have refused ourselves is in the log already."""
        connection.channel.recv(1)
        try:
            why = wire.decode_error(data)
        except PioletError as error:
            _log.error("a step sent more than one message (%s); its connection is closed", error.message)
            self._close(connection)
            return
        if not connection.failed:
            self._note_failure(connection, start, why)

    def _note_failure(self, connection: Connection, start: wire.Start, why: str) -> None:
        connection.failed = True
        step = identity.name(start.job, start.step)
        _log.warning("step %s of uid %d failed: %s", step, start.uid, why, extra=logs.of(start.uid))
        if self._refused is not None:
            definition = connection.definition
            image = definition.image.digest if definition is not None and definition.image is not None else None
            self._refused(start, image, why)

    def _close(self, connection: Connection) -> None:
        if connection.pidfd >= 0:
            self._selector.unregister(connection.pidfd)
            os.close(connection.pidfd)
        else:
            self._selector.unregister(connection.channel)
        connection.channel.close()
        self._connections.pop(connection.key, None)
        self._forget(connection)
        if connection.asked:
            self._ask(encode(End(connection.key)), [])
        if connection.start is not None:
            _log.debug("step %d.%d: end", connection.start.job, connection.start.step)

    # -- threads

    def _forget(self, connection: Connection) -> None:
        """Wait for no look-up any longer; one that has not begun does not."""
        self._waiting.pop(connection.key, None)
        for future in connection.look_ups.values():
            future.cancel()
        # They know the connection: a circle, which only the garbage collector would free, some hundred steps later.
        connection.look_ups.clear()

    def _look_up(self, connection: Connection, start: wire.Start) -> None:
        assert connection.definition is not None
        image = connection.definition.image
        allowed = min(self._config.node.build_timeout_s, start.timeout_ms / 1000 - _TIMEOUT_MARGIN_S)
        connection.deadline = connection.began + max(0.1, allowed)
        self._waiting[connection.key] = connection
        wish = connection.wish = self._furnisher.wish(connection.definition)
        look = None if wish is None else self._furnisher.look_up(wish)
        if look is not None:
            connection.look_ups[_HOOKS] = look
        connection.look_ups[_USERS] = self._threads[_USERS].submit(_account, start.uid)
        if image is not None and image.store == "site":
            store = self._config.images.store
            connection.look_ups[_STORE] = self._threads[_STORE].submit(_identity, store, image.digest or "", start.uid)
        for future in connection.look_ups.values():
            future.add_done_callback(lambda _: self._note_done(connection.key))

    def _note_done(self, key: int) -> None:
        self._done.append(key)
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write, b"1")

    def _on_done(self) -> None:
        os.read(self._wake_read, 4096)
        done, self._done = self._done, []
        for key in done:
            connection = self._waiting.get(key)
            if connection is None:
                continue
            try:
                found = {name: future.result() for name, future in connection.look_ups.items() if future.done()}
                if len(found) == len(connection.look_ups):
                    del self._waiting[key]
                    self._build(connection, found.get(_STORE, []), *found[_USERS])
            except PioletError as error:
                self._fail(connection, error)
            except OSError as error:
                self._fail(connection, PioletError(f"cannot prepare the container: {error}"))

    def _timeout(self) -> float | None:
        if not self._waiting:
            return None
        return max(0.0, min(one.deadline for one in self._waiting.values()) - time.monotonic())

    def _give_up(self) -> None:
        """Fail the steps that a store or a user database has kept waiting for too long."""
        now = time.monotonic() if self._waiting else 0.0
        for connection in [one for one in self._waiting.values() if now >= one.deadline]:
            (late, *_) = [name for name, future in connection.look_ups.items() if not future.done()] or [_STORE]
            error = PioletError(f"the {late} does not answer on this node", "is its file system or its service hung?")
            self._fail(connection, error)

    def _build(self, connection: Connection, image_file: list[int], user: str, home: str) -> None:
        start, definition = connection.start, connection.definition
        assert start is not None and definition is not None and definition.image is not None
        label = labels.label(identity.name(start.job, start.step), self._place)
        wish = connection.wish
        additions = Additions() if wish is None else self._furnisher.additions(wish, start, user, home)
        connection.variables, connection.tasks = additions.variables, additions.tasks
        spool = self._spool.directory(start.node)
        plan = make_plan(definition, label, home, self._config.environment, spool, additions, user)
        request = Build(
            key=connection.key,
            digest=definition.image.digest if definition.image.store == "site" else None,
            identity=image_file,
            timeout_s=max(0.1, connection.deadline - time.monotonic()),
            plan=plan.to_json(),
            foreign=plan.foreign,
            remapped=plan.remapped,
        )
        message = encode(request)
        if len(message) > MESSAGE_MAX:
            raise PioletError("the environment has too much in it to be built", "shorten its mounts, or the entrypoint")
        connection.asked = True
        self._ask(message, [connection.channel.fileno()])

    # -- monitor

    def _ask(self, request: bytes, descriptors: list[int]) -> None:
        try:
            packets.send(self._monitor, request, descriptors)
        except (BrokenPipeError, ConnectionResetError):
            self._stop = True  # the monitor has ended; so do we

    def _on_monitor(self) -> None:
        with packets.receive(self._monitor, MESSAGE_MAX, 4) as packet:
            if not packet.data:
                _log.error("the monitor has ended; so does the server")
                self._stop = True
                return
            answer = packets.decode(Answer, packet.data)
            connection = self._connections.get(answer.key)
            if connection is None:
                return
            if answer.error:
                connection.asked, connection.container = False, ""
                self._fail(connection, PioletError(answer.error, answer.hint or None))
            else:
                self._ready(connection, packet.descriptors, answer.made_in, answer.start)
                _trace(connection, answer.marks)

    # -- answers

    def _ready(self, connection: Connection, namespaces: list[int], made_in: int = 0, start: str = "") -> None:
        definition, step = connection.definition, connection.start
        assert definition is not None and step is not None
        workdir = (definition.workdir if definition.workdir_given else start) or "/"
        if namespaces and not connection.container:
            connection.container = identity.name(step.job, step.step)
        connection.workdir = workdir
        try:
            attaching.check(definition, bool(namespaces))
            variables = {**definition.set_env, **connection.variables}
            if namespaces:  # what slurmstepd has said there is where the step is on the node
                variables["PWD"] = workdir
            environment = wire.encode_environment(variables, definition.unset_env)
            message = wire.encode_ready(
                namespaces=bool(namespaces),
                environment=len(environment),
                workdir=workdir if namespaces else "",
                entrypoint=attaching.program(definition, connection.tasks) if namespaces else "",
                made_in=made_in,
            )
        except PioletError as error:
            self._fail(connection, error)
            return
        descriptors = list(namespaces)
        file = -1
        if environment:
            file = os.memfd_create("piolet-environment", os.MFD_CLOEXEC)
            os.write(file, environment)
            descriptors.append(file)
        try:
            self._answer(connection, message, descriptors)
        finally:
            if file >= 0:
                os.close(file)

    def _fail(self, connection: Connection, error: PioletError) -> None:
        start = connection.start
        if start is None:
            _log.warning("a message of a step is refused: %s", error.message)
        elif not connection.answered:
            self._note_failure(connection, start, error.message)
        self._answer(connection, wire.encode_error(error.message, error.hint), [])

    def _answer(self, connection: Connection, message: bytes, descriptors: list[int]) -> None:
        if connection.answered:
            return
        connection.answered = True
        self._forget(connection)
        if connection.pidfd >= 0:
            self._selector.unregister(connection.pidfd)
            os.close(connection.pidfd)
            connection.pidfd = -1
            self._watch(connection.channel, lambda: self._on_plugin(connection))
        with contextlib.suppress(OSError):
            connection.channel.recv(1)  # START, unless the monitor has taken it
        try:
            packets.send(connection.channel, message, descriptors)
        except OSError as error:
            _log.info("the step ended before its answer: %s", error.strerror)


def _peek(channel: socket.socket) -> bytes | None:
    """Return the next message, which stays there; b'': the other end is closed; None: there is nothing yet."""
    for _ in range(2):
        try:
            return channel.recv(wire.START_MAX + 1, socket.MSG_PEEK)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            continue  # said once where the answer was still in the queue; what had come before can be read
        except OSError:
            break
    return b""


def _trace(connection: Connection, marks: list[tuple[str, float]]) -> None:
    """Log where the time went, in milliseconds, one phase after the other."""
    if not _log.isEnabledFor(logging.DEBUG) or connection.start is None:
        return
    before, phases = connection.began, []
    for name, at in [*marks, ("answer", time.monotonic())]:
        phases.append(f"{name} {(at - before) * 1e3:.2f}")
        before = at
    step = identity.name(connection.start.job, connection.start.step)
    _log.debug("step %s: ready in %.2f ms: %s", step, (before - connection.began) * 1e3, ", ".join(phases))


def _identity(store: str, digest: str, uid: int) -> list[int]:
    """Return the identity of the image's file, which the user may use: runs in a thread."""
    return identity_of(os.stat(locate(store, digest, uid)))


def _account(uid: int) -> tuple[str, str]:
    """Return the user's name and home directory, or two empty texts: runs in a thread."""
    try:
        found = pwd.getpwuid(uid)
    except KeyError:
        return "", ""
    return found.pw_name, found.pw_dir
