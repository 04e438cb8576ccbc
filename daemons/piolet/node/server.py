"""pioletd's unprivileged half: listens to the plugins, decides, and asks the monitor for what needs root.

One connection is one step's life: START, then READY or ERROR, then silence until slurmstepd ends and the connection
with it. Whoever is not root is refused. Looks into the store and the user database happen in threads, so that a
hung file system delays the step that needs it and no other.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pwd
import selectors
import socket
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from piolet import peer, wire
from piolet.config import Config
from piolet.environment.definition import Definition, from_json
from piolet.environment.images.store import locate
from piolet.errors import PioletError
from piolet.node import leftovers
from piolet.node.container import ENTRY_PROGRAM
from piolet.node.planner import make_plan
from piolet.node.refusals import Refusals
from piolet.node.requests import MESSAGE_MAX, Build, End, encode

_log = logging.getLogger("pioletd")

_CONNECTIONS_MAX = 4096
_THREADS = 8
_PAUSE_S = 0.05
_TIMEOUT_MARGIN_S = 1.0


@dataclass
class Connection:
    """A connection of a slurmstepd."""

    key: int
    channel: socket.socket
    pid: int
    start: wire.Start | None = None
    definition: Definition | None = None
    began: float = 0.0
    asked: bool = False
    answered: bool = False


@dataclass(frozen=True)
class Prepared:
    """What a thread found out for a step: the image file's identity, the user's home."""

    identity: list[int]
    home: str | None


class Server:
    """The event loop. `listener` is the node's socket, `monitor` the pair's end; `desk` adds others to the loop."""

    def __init__(
        self,
        listener: socket.socket,
        monitor: socket.socket,
        config: Config,
        place: str,
        desk: Callable[[selectors.BaseSelector], object] | None = None,
    ) -> None:
        self._listener = listener
        self._monitor = monitor
        self._config = config
        self._place = place
        self._connections: dict[int, Connection] = {}
        self._next_key = 1
        self._threads = ThreadPoolExecutor(_THREADS, "store")
        self._done: list[tuple[int, Future[Prepared]]] = []
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._selector = selectors.DefaultSelector()
        self._refusals = Refusals(self._selector)
        self._stop = False
        if desk is not None:
            desk(self._selector)
        listener.setblocking(False)
        self._watch(listener, self._on_connect)
        self._watch(monitor, self._on_monitor)
        self._watch(self._wake_read, self._on_prepared)

    def run(self) -> None:
        """Serve until the monitor ends."""
        while not self._stop:
            for key, _ in self._selector.select():
                key.data()

    def _watch(self, what: socket.socket | int, act: Callable[[], None]) -> None:
        self._selector.register(what, selectors.EVENT_READ, act)

    # -- plugins

    def _on_connect(self) -> None:
        try:
            channel, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            # Out of descriptors: the connection stays in the queue, and a loop without a pause would spin.
            _log.error("cannot take a connection: %s", error.strerror)
            time.sleep(_PAUSE_S)
            return
        channel.setblocking(False)
        pid, uid, _ = peer.of(channel)
        if uid != 0:
            self._refusals.refuse(
                channel, "only Slurm, as root, may announce a step to pioletd", "use srun --environment=FILE"
            )
            return
        if len(self._connections) >= _CONNECTIONS_MAX:
            self._refusals.refuse(channel, f"pioletd serves {_CONNECTIONS_MAX} steps on this node already", None)
            return
        connection = Connection(self._next_key, channel, pid)
        self._next_key += 1
        self._connections[connection.key] = connection
        self._watch(channel, lambda: self._on_plugin(connection))

    def _on_plugin(self, connection: Connection) -> None:
        try:
            data = connection.channel.recv(wire.START_MAX + 1)
        except BlockingIOError:
            return
        except OSError:
            # ECONNRESET: the answer was still in the queue when slurmstepd ended.
            data = b""
        if not data:
            self._close(connection)
            return
        if connection.start is not None:
            _log.error("a step sent more than one message; its connection is closed")
            self._close(connection)
            return
        connection.began = time.monotonic()
        try:
            start = wire.decode_start(data)
            connection.start = start
            connection.definition = from_json(start.definition)
        except PioletError as error:
            self._fail(connection, error)
            return
        _log.debug("step %d.%d of uid %d: start", start.job, start.step, start.uid)
        if connection.definition.image is None:
            self._ready(connection, [])
            return
        future = self._threads.submit(_prepare, self._config, connection.definition, start.uid)
        future.add_done_callback(lambda f: self._note_prepared(connection.key, f))

    def _close(self, connection: Connection) -> None:
        self._selector.unregister(connection.channel)
        connection.channel.close()
        self._connections.pop(connection.key, None)
        if connection.asked:
            self._ask(End(connection.key))
        if connection.start is not None:
            _log.debug("step %d.%d: end", connection.start.job, connection.start.step)

    # -- threads

    def _note_prepared(self, key: int, future: Future[Prepared]) -> None:
        self._done.append((key, future))
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write, b"1")

    def _on_prepared(self) -> None:
        os.read(self._wake_read, 4096)
        done, self._done = self._done, []
        for key, future in done:
            connection = self._connections.get(key)
            if connection is None:
                continue
            try:
                self._build(connection, future.result())
            except PioletError as error:
                self._fail(connection, error)
            except OSError as error:
                self._fail(connection, PioletError(f"cannot prepare the container: {error}"))

    def _build(self, connection: Connection, prepared: Prepared) -> None:
        start, definition = connection.start, connection.definition
        assert start is not None and definition is not None and definition.image is not None
        step = f"{start.job}.{start.step}"
        plan = make_plan(definition, leftovers.label(step, self._place), prepared.home, self._config)
        timeout = min(self._config.node.build_timeout_s, start.timeout_ms / 1000 - _TIMEOUT_MARGIN_S)
        connection.asked = True
        self._ask(
            Build(
                key=connection.key,
                step=step,
                peer=connection.pid,
                uid=start.uid,
                gid=start.gid,
                groups=start.groups,
                digest=definition.image.digest if definition.image.store == "site" else None,
                identity=prepared.identity,
                timeout_s=max(0.1, timeout),
                plan=plan.to_json(),
            )
        )

    # -- monitor

    def _ask(self, request: Build | End) -> None:
        self._monitor.send(encode(request))

    def _on_monitor(self) -> None:
        data, descriptors, _, _ = socket.recv_fds(self._monitor, MESSAGE_MAX, 4)
        try:
            if not data:
                _log.error("the monitor has ended; so does the server")
                self._stop = True
                return
            value = json.loads(data)
            connection = self._connections.get(value["key"])
            if connection is None:
                return
            if "error" in value:
                connection.asked = False
                self._fail(connection, PioletError(value["error"], value["hint"] or None))
            else:
                self._ready(connection, descriptors)
                _trace(connection, value["marks"])
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    # -- answers

    def _ready(self, connection: Connection, namespaces: list[int]) -> None:
        definition = connection.definition
        assert definition is not None
        try:
            environment = wire.encode_environment(definition.set_env, definition.unset_env)
            message = wire.encode_ready(
                namespaces=bool(namespaces),
                environment=len(environment),
                workdir=definition.workdir or ("/" if namespaces else ""),
                entrypoint=ENTRY_PROGRAM if definition.entrypoint else "",
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
        _log.info("refused: %s", error.message)
        self._answer(connection, wire.encode_error(error.message, error.hint), [])

    def _answer(self, connection: Connection, message: bytes, descriptors: list[int]) -> None:
        if connection.answered:
            return
        connection.answered = True
        try:
            socket.send_fds(connection.channel, [message], descriptors)
        except OSError as error:
            _log.info("the step ended before its answer: %s", error.strerror)


def _trace(connection: Connection, marks: list[tuple[str, float]]) -> None:
    """Log where the time went, in milliseconds, one phase after the other."""
    if not _log.isEnabledFor(logging.DEBUG) or connection.start is None:
        return
    before, phases = connection.began, []
    for name, at in [*marks, ("answer", time.monotonic())]:
        phases.append(f"{name} {(at - before) * 1e3:.2f}")
        before = at
    step = f"{connection.start.job}.{connection.start.step}"
    _log.debug("step %s: ready in %.2f ms: %s", step, (before - connection.began) * 1e3, ", ".join(phases))


def _prepare(config: Config, definition: Definition, uid: int) -> Prepared:
    """Look up what is slow to look up: runs in a thread."""
    image = definition.image
    assert image is not None
    identity: list[int] = []
    if image.store == "site":
        assert image.digest is not None
        status = os.stat(locate(config.images.store, image.digest, uid))
        identity = [status.st_dev, status.st_ino, status.st_size]
    try:
        home: str | None = pwd.getpwuid(uid).pw_dir
    except KeyError:
        home = None
    return Prepared(identity, home)
