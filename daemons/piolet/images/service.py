"""`piolet-imaged`: the image service, the only writer of the site's store.

It runs in the foreground as whatever account started it, never needs root, and logs to standard
error. A client is who the kernel says it is. Refused in one sentence: what is malformed, too long,
unknown, or too much at once. A client that stops reading, or goes away, holds up nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import threading
from collections import Counter
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from piolet.base import logs, units
from piolet.base.errors import ImageError, PioletError
from piolet.base.rates import Rates
from piolet.images import credentials, protocol, rescan
from piolet.images.admin import Admin
from piolet.images.conversion import Requester
from piolet.images.failures import ServiceBusy, from_os, to_wire
from piolet.images.importer import Importer
from piolet.images.listening import listen
from piolet.images.reference import parse
from piolet.images.settings import ImagesConfig, Keep, keep_of
from piolet.images.slots import Slots
from piolet.images.store import due
from piolet.images.verify import verify
from piolet.system import notify, peer
from piolet.transport import packets

_CONNECTIONS = 256
_PER_USER = 48
_REQUESTS_A_SECOND, _REQUESTS_BURST = 50, 200
_EXPIRY_EVERY_S = 3600.0
_REQUEST_TIMEOUT_S = 10.0
_REPLY_TIMEOUT_S = 10.0
_TICK_S = 0.5
_KEEPALIVE_TICKS = 10
_LOG = logging.getLogger("piolet-imaged")
_T = TypeVar("_T")


class Service:
    """Answers the connections of one listening socket."""

    def __init__(self, importer: Importer) -> None:
        self._importer = importer
        self._admin = Admin(importer.store, importer.presence)
        # One listing or removal at a time: each may read the whole store, which takes its time.
        self._managing = ThreadPoolExecutor(1, "piolet-images")
        self._tasks: set[asyncio.Task[None]] = set()
        self._of_user: Counter[int] = Counter()
        self._rates = Rates(_REQUESTS_A_SECOND, _REQUESTS_BURST)
        self._verifying = Slots(2, 1, "read")

    async def serve(self, listening: socket.socket) -> None:
        """Accept until cancelled; then end every conversation."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                try:
                    connection, _ = await loop.sock_accept(listening)
                except OSError as error:
                    _LOG.warning("cannot accept a connection: %s", error)
                    await asyncio.sleep(_TICK_S)
                    continue
                connection.setblocking(False)
                # Where somebody is always waiting, accepting never does, and nothing else would get a turn.
                await asyncio.sleep(0)
                if not self._may_ask(connection):
                    continue
                task = asyncio.create_task(self._converse(connection))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        finally:
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._managing.shutdown(cancel_futures=True)

    def _may_ask(self, connection: socket.socket) -> bool:
        """Return whether the user may ask once more now; if not, the connection is told so, and closed."""
        try:
            uid = peer.of(connection).uid
        except OSError:
            connection.close()
            return False
        if uid in (0, os.geteuid()) or self._rates.take(uid):
            return True
        _LOG.info("uid %d: more than %d requests a second", uid, _REQUESTS_A_SECOND, extra=logs.of(uid))
        with connection, contextlib.suppress(OSError):
            protocol.send(connection, _refusal(_busy()))
        return False

    async def _converse(self, connection: socket.socket) -> None:
        with connection:
            pid, uid, _ = peer.of(connection)
            self._of_user[uid] += 1
            try:
                if len(self._tasks) > _CONNECTIONS or self._of_user[uid] > _PER_USER:
                    reply: dict[str, Any] = _refusal(_busy())
                else:
                    reply = await self._answer(connection, uid, pid)
                await _send(connection, reply)
            except (OSError, TimeoutError):
                _LOG.info("uid %d (pid %d) went away", uid, pid, extra=logs.of(uid))
            finally:
                self._of_user[uid] -= 1
                self._of_user += Counter()  # forget those who have none

    async def _answer(self, connection: socket.socket, uid: int, pid: int) -> dict[str, Any]:
        """Return the last message of the conversation, whatever happens in it."""
        descriptors: list[int] = []
        try:
            request, descriptors = await _request(connection)
            op, what = request.get("op"), request.get("reference", request.get("target", ""))
            _LOG.info("uid %d (pid %d): %s %s", uid, pid, str(op)[:20], str(what)[:200], extra=logs.of(uid))
            return {"result": await self._act(connection, request, descriptors, uid)}
        except PioletError as error:
            _LOG.info("uid %d: refused or failed: %s", uid, error.message, extra=logs.of(uid))
            return _refusal(error)
        except ConnectionError:
            raise  # the client has gone
        except OSError as error:
            _LOG.warning("uid %d: %s", uid, error, extra=logs.of(uid))
            return _refusal(from_os(error, self._importer.store.root))
        except (AssertionError, LookupError, TypeError, ValueError):
            _LOG.exception("a fault in the service itself, asked by uid %d", uid, extra=logs.of(uid))
            return _refusal(ImageError("the image service has a fault; its log says more"))
        finally:
            packets.close_all(descriptors)

    async def _act(
        self, connection: socket.socket, request: dict[str, Any], descriptors: list[int], uid: int
    ) -> dict[str, Any]:
        if request.get("version") != protocol.VERSION:
            raise ImageError(f"the request is not of version {protocol.VERSION}", "client and service differ in age")
        if len(descriptors) > 1:
            raise ImageError("the request came with more than one descriptor")
        op = request.get("op")
        if op == "ping":
            return {"pong": True}
        if op == "resolve":
            text, mode = _text(request, "reference"), _text(request, "mode")
            if mode not in ("known", "pull", "look", "refresh", "renew"):
                raise ImageError(f"the request has the unknown mode '{mode[:20]}'")
            entry = credentials.read(descriptors[0], parse(text).registry) if descriptors else None
            told = _Teller(connection)
            return await told.during(self._importer.resolve(Requester(uid, entry), text, mode, told.tell))
        if op == "import":
            if not descriptors:
                raise ImageError("the request to import came without an archive")
            told = _Teller(connection)
            kind, name = _text(request, "kind"), _text(request, "name")
            return await told.during(self._importer.bring(Requester(uid), kind, descriptors[0], name, told.tell))
        if op == "list":
            return await _parts(connection, await self._manage(connection, self._admin.entries, uid))
        if op == "outdated":
            return await _parts(connection, await self._manage(connection, self._admin.outdated, uid))
        if op == "rm":
            return await self._manage(connection, self._admin.remove, uid, _text(request, "target"))
        if op in ("pin", "unpin"):
            return await self._manage(connection, self._admin.pin, uid, _text(request, "target"), op == "pin")
        if op == "verify":
            target = None if request.get("target") is None else _text(request, "target")
            return await _parts(connection, await self._verify(connection, uid, target))
        if op == "prune":
            older, dry_run = request.get("older_than_s"), request.get("dry_run")
            if not isinstance(older, int | float) or isinstance(older, bool) or not isinstance(dry_run, bool):
                raise ImageError("the request to prune is malformed")
            return await _parts(connection, await self._manage(connection, self._admin.prune, uid, older, dry_run))
        what = f"the request asks for the unknown operation {str(op)[:40]!r}"
        raise ImageError(what, "client and service differ in age")

    async def _manage(self, connection: socket.socket, act: Callable[..., _T], *arguments: Any) -> _T:
        """Return what `act` returns, a method of Admin; nobody else is held up by it."""

        async def work() -> _T:
            return await asyncio.get_running_loop().run_in_executor(self._managing, act, *arguments)

        return await _Teller(connection).during(work())

    async def _verify(self, connection: socket.socket, uid: int, target: str | None) -> list[dict[str, Any]]:
        """Return the entries of images with their state; reading ends when the client goes away."""
        chosen = await self._manage(connection, self._admin.chosen, uid, target)
        stop, told = threading.Event(), _Teller(connection)

        async def work() -> list[dict[str, Any]]:
            async with self._verifying.place(uid, told.tell):
                return await asyncio.to_thread(verify, self._importer.store, chosen, told.tell, stop)

        try:
            return await told.during(work())
        finally:
            stop.set()

    async def expire(self, idle_days: int, keep: Keep) -> None:
        """Remove what nobody uses: each hour what `keep` says, and once a day public images of `idle_days`; 0: none."""
        loop = asyncio.get_running_loop()
        while idle_days or keep != Keep():
            try:
                if keep != Keep():
                    gone = await loop.run_in_executor(self._managing, self._admin.evict, keep)
                    size = units.size(sum(entry["size"] for entry in gone))
                    _LOG.info("removed %d images, %s, that [images] keep does not keep", len(gone), size)
                if idle_days and due(self._importer.store.root):
                    gone = await loop.run_in_executor(self._managing, self._admin.expire, idle_days * 86400)
                    size = units.size(sum(entry["size"] for entry in gone))
                    _LOG.info("removed %d public images, %s: unused for %d days", len(gone), size, idle_days)
            except (OSError, ImageError) as error:
                _LOG.warning("cannot look for public images that nobody uses: %s", error)
            await asyncio.sleep(_EXPIRY_EVERY_S)


class _Teller:
    """Passes progress on to a client, and notices when the client has gone."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._text = "working"
        self._news = False

    def tell(self, text: str) -> None:
        """Remember `text`; the latest one is sent soon."""
        self._text, self._news = text[:500], True

    async def during(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Return what the coroutine `work` returns; it is cancelled when the client goes away."""
        task = asyncio.create_task(work)
        quiet = 0
        try:
            while True:
                done, _ = await asyncio.wait({task}, timeout=_TICK_S)
                if done:
                    if self._news:
                        self._send()
                    return task.result()
                quiet += 1
                if self._gone():
                    raise ConnectionResetError("the client has gone")
                if self._news or quiet >= _KEEPALIVE_TICKS:
                    quiet, self._news = 0, False
                    self._send()
        finally:
            if not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, PioletError):
                    await task

    def _send(self) -> None:
        # A client that does not read loses progress, nothing else.
        with contextlib.suppress(BlockingIOError):
            protocol.send(self._connection, {"progress": self._text})

    def _gone(self) -> bool:
        try:
            data, descriptors = protocol.receive(self._connection)
        except BlockingIOError:
            return False
        except (OSError, ImageError):
            return True
        packets.close_all(descriptors)
        return not data


async def _request(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    try:
        async with asyncio.timeout(_REQUEST_TIMEOUT_S):
            await _ready(connection, write=False)
    except TimeoutError:
        raise ImageError(f"no request came in {_REQUEST_TIMEOUT_S:.0f} s") from None
    data, descriptors = protocol.receive(connection)
    try:
        if not data:
            raise ConnectionResetError("the client has gone")
        return protocol.unpack(data), descriptors
    except BaseException:
        packets.close_all(descriptors)
        raise


async def _ready(connection: socket.socket, *, write: bool) -> None:
    loop, fd = asyncio.get_running_loop(), connection.fileno()
    ready = asyncio.Event()
    (loop.add_writer if write else loop.add_reader)(fd, ready.set)
    try:
        await ready.wait()
    finally:
        (loop.remove_writer if write else loop.remove_reader)(fd)


async def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    """Send a message that matters, waiting a bounded time for a client that is slow to read."""
    try:
        protocol.pack(message)
    except ImageError:
        message = _refusal(ImageError("the answer is too long: the image's configuration is larger than 64 KiB"))
    async with asyncio.timeout(_REPLY_TIMEOUT_S):
        while True:
            try:
                return protocol.send(connection, message)
            except BlockingIOError:
                await _ready(connection, write=True)


async def _parts(connection: socket.socket, entries: list[dict[str, Any]]) -> dict[str, Any]:
    part: list[dict[str, Any]] = []
    size = 0
    for entry in entries:
        length = len(protocol.pack(entry))
        if part and size + length > protocol.LIMIT_BYTES // 2:
            await _send(connection, {"part": part})
            part, size = [], 0
        part.append(entry)
        size += length
    if part:
        await _send(connection, {"part": part})
    return {"count": len(entries)}


def _text(request: dict[str, Any], key: str) -> str:
    value = request.get(key)
    if not isinstance(value, str):
        raise ImageError(f"the request lacks '{key}'")
    return value


def _busy() -> ServiceBusy:
    return ServiceBusy("the image service is busy", "try again in a minute")


def _refusal(error: PioletError) -> dict[str, Any]:
    shown = error if isinstance(error, ImageError) else ImageError(error.message, error.hint)
    return {"error": to_wire(shown)}


async def run(config: ImagesConfig) -> None:
    """Serve until SIGTERM or SIGINT."""
    importer = Importer(config, config.store)
    with listen(config.socket, _CONNECTIONS) as listening:
        try:
            async with importer.open():
                service = Service(importer)
                serving = asyncio.create_task(service.serve(listening))
                expiring = asyncio.gather(
                    service.expire(config.public_idle_days, keep_of(config.keep)),
                    rescan.run(config, importer.store, importer.presence),
                )
                loop = asyncio.get_running_loop()
                for number in (signal.SIGTERM, signal.SIGINT):
                    loop.add_signal_handler(number, serving.cancel)
                _LOG.info("listening at %s, store %s", config.socket, config.store)
                notify.ready()
                with contextlib.suppress(asyncio.CancelledError):
                    await serving
                expiring.cancel()
        except OSError as error:
            failure = from_os(error, config.store)
            if error.errno == errno.EROFS:
                failure.hint = "mount it with rw; systemd's unit shows the service /usr, /boot and /etc read-only, too"
            raise failure from None
        finally:
            with contextlib.suppress(OSError):
                os.unlink(config.socket)
