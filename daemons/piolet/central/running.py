"""Starts the service, and ends it: who it may run as, its store, its threads, its sockets.

The service is mightier than any node's daemon: it may say of every node what it wants. So it runs neither as root nor
as the account of nodes' parsers.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import logging
import os
import signal
import socket
import ssl
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import uvicorn
from uvicorn.server import ServerState

from piolet.base.errors import ConfigError, SlurmError
from piolet.central.accounted import JOBS
from piolet.central.answers import Answers
from piolet.central.bounded import Bounded
from piolet.central.doors import CERTIFICATE, Doors
from piolet.central.ends import Ends
from piolet.central.garbage import Collector
from piolet.central.ledger import Judge, Ledger
from piolet.central.metrics import Counts
from piolet.central.moving import Mover
from piolet.central.places import Places, from_file, no_slurm
from piolet.central.poller import Poller
from piolet.central.recent import WEEK_S, Watched
from piolet.central.rules.language import Rule
from piolet.central.saving import Saved
from piolet.central.service import Service
from piolet.central.settings import CentralConfig, listen_of
from piolet.central.steps import Steps
from piolet.central.store.archive import Archive
from piolet.central.store.database import alone, connect
from piolet.central.store.reader import Reader
from piolet.central.store.writer import Writer
from piolet.central.told import Told
from piolet.observe.keepsettings import KeepConfig
from piolet.slurm import cluster as slurm
from piolet.slurm import past
from piolet.system import notify
from piolet.system.accounts import own_name, uid_of

_LOG = logging.getLogger("piolet-central")
_CONNECTIONS = 2048
_PRIVATE_S = 600.0
_HANDSHAKE_S, _END_S = 10.0, 10.0


def refuse_account(uid: int, accounts: dict[str, str]) -> None:
    """Raise ConfigError if this uid is root's, or one of an account that the service must not be.

    accounts   what each account is for: 'the nodes' daemon' -> 'piolet'
    """
    if uid == 0:
        raise ConfigError(
            "piolet-central does not run as root", "start it by its unit, or as the account of [central] account"
        )
    for what, name in accounts.items():
        try:
            number = uid_of(name, what)
        except ConfigError:
            continue  # there is none of these here
        if number == uid:
            raise ConfigError(
                f"piolet-central does not run as {name}, the account of {what}: whoever breaks one would have all",
                "give it an account of its own: [central] account",
            )


class Private:
    """Whether Slurm hides things from users, asked now and then; True where it cannot be asked."""

    def __init__(self, always: bool, ask: Callable[[], slurm.Cluster]) -> None:
        self._always, self._ask = always, ask
        self._lock = threading.Lock()
        self._asked = float("-inf")
        self._found = True

    def __call__(self) -> bool:
        """Return it."""
        if self._always:
            return True
        with self._lock:
            if time.monotonic() - self._asked > _PRIVATE_S:
                self._asked = time.monotonic()
                try:
                    self._found = bool(self._ask().private)
                except SlurmError as error:
                    _LOG.warning("whether Slurm has PrivateData is not known, so it counts as set: %s", error.message)
                    self._found = True
            return self._found


def run(
    config: CentralConfig, keep: KeepConfig, forwarder: str, rules: Sequence[Rule], *, slurm_there: bool = True
) -> None:  # fmt: skip
    """Serve until SIGTERM or SIGINT. Raises PioletError, OSError.

    keep          for how long data of steps are kept
    forwarder     the account that nodes send as
    rules         what it judges by
    slurm_there   whether Slurm can be asked; False: [central] cluster and addresses say it all
    """
    context = secured(config)
    name = config.cluster or slurm.cluster().name
    places = Places(
        from_file(config.addresses) if config.addresses else {}, slurm.addresses if slurm_there else no_slurm
    )
    sender = uid_of(forwarder, "[forward] account") if config.trust != CERTIFICATE else -1
    doors = Doors(os.geteuid(), sender, name, places, config.munge_socket, config.trust)
    database = connect(config.store, create=True)
    with alone(database), contextlib.ExitStack() as stack:
        network = stack.enter_context(_listening(config))
        local = stack.enter_context(_local(config.socket)) if config.socket else None
        if config.keep_months:
            own_directory(config.archive, "[central] archive")
        old = Archive(config.archive) if config.keep_months else None
        saved = Saved(rules, name)
        engine, recent, place = saved.restored(database, old.last if old else 0)
        ends = Ends(Reader(database, name).own(JOBS, time.time() - WEEK_S))
        judge = Judge(
            Reader(database, name, old), Watched(Watched(engine, recent), ends), after=place,
            pack=functools.partial(saved.packed, engine, recent),
        )  # fmt: skip
        ledger = Ledger(Writer(database, old.last if old else 0), judge)
        reader = Reader(database, name)
        private = Private(config.private, slurm.cluster if slurm_there else _unknown)
        counts = Counts(judge, ledger)
        answers = Answers(reader, ledger, judge, config.staff, private, rules)
        Told(answers, recent, time.time)
        answers.cancelled, answers.is_gone = ends.cancelled, places.is_gone
        ledger.start()
        stack.callback(ledger.stop)
        judge.start(ledger)
        stack.callback(judge.stop)
        collector = Collector()
        collector.start()
        stack.callback(collector.stop)
        if old is not None:
            mover = Mover(reader, ledger, old, config.keep_months)
            mover.start()
            stack.callback(mover.stop)
        if keep.steps:
            own_directory(keep.directory, "[keep] directory")
        steps = Steps(keep, answers, slurm_there, config.store, name) if keep.steps else None
        if steps is not None:
            steps.start()
            stack.callback(steps.stop)
        if config.accounting_s and slurm_there:
            ask = past.ask_jobs if steps is None else steps.told(past.ask_jobs)
            poller = Poller(
                ledger, name, config.accounting_s, config.history_days * 86400.0, ask,
                hidden=lambda: past.hidden(own_name()),
            )  # fmt: skip
            poller.start()
            stack.callback(poller.stop)
        service = Service(doors, ledger, reader, answers, counts, config.prometheus)
        if steps is not None:
            service.frames, service.known = steps.frames, steps.jobs
        _LOG.info("listening at %s for the cluster %s, store %s", config.listen, name, database.url.database)
        asyncio.run(_serve(service, network, local, context))
    database.dispose()


def _unknown() -> slurm.Cluster:
    return slurm.Cluster("", frozenset())


async def _serve(
    service: Service, network: socket.socket, local: socket.socket | None, secured: ssl.SSLContext | None
) -> None:
    """Serve on these sockets until a signal comes; then let what has begun come to its end."""
    config = uvicorn.Config(
        service.application(), http=Bounded, ws="none", lifespan="off", log_config=None, access_log=False,
        server_header=False, date_header=False, proxy_headers=False, limit_concurrency=_CONNECTIONS,
        timeout_keep_alive=5,
    )  # fmt: skip
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()

    def connection() -> asyncio.Protocol:
        return Bounded(config, state, {}, loop)

    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    servers = [
        await loop.create_server(
            connection, sock=network, backlog=1024, ssl=secured,
            ssl_handshake_timeout=_HANDSHAKE_S if secured else None,
        )
    ]  # fmt: skip
    if local is not None:
        servers.append(await loop.create_unix_server(connection, sock=local))
    notify.ready()
    await ended.wait()
    for server in servers:
        server.close()
    for one in list(state.connections):
        one.shutdown()
    if state.tasks:
        await asyncio.wait(list(state.tasks), timeout=_END_S)


@contextlib.contextmanager
def _listening(config: CentralConfig) -> Iterator[socket.socket]:
    host, port = listen_of(config.listen)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as channel:
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            channel.bind((host, port))
        except OSError as error:
            raise ConfigError(f"[central] listen: {config.listen} cannot be taken: {error.strerror}") from None
        channel.listen(1024)
        yield channel


@contextlib.contextmanager
def _local(path: str) -> Iterator[socket.socket]:
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            os.unlink(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
        try:
            channel.bind(path)
            os.chmod(path, 0o666)  # noqa: S103 - what each may ask for is looked at when they ask
        except OSError as error:
            raise ConfigError(f"[central] socket: {path} cannot be made: {error.strerror}") from None
        channel.listen(128)
        try:
            yield channel
        finally:
            with contextlib.suppress(OSError):
                os.unlink(path)


def own_directory(path: str, setting: str) -> None:
    """Have a directory in which this process may write. Raises ConfigError."""
    try:
        os.makedirs(path, 0o700, exist_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, 0o600))
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EISDIR):  # a file system without files that have no name
            return
        raise ConfigError(
            f"{setting}: nothing can be written in {path}: {error.strerror}",
            f"install -d -o {own_name()} {path}; outside of /var/lib/piolet-central the unit needs "
            f"ReadWritePaths={path} besides, by systemctl edit piolet-central",
        ) from None


def secured(config: CentralConfig) -> ssl.SSLContext | None:
    """Return how the service speaks TLS; None where it has no certificate. Raises ConfigError."""
    if config.trust == CERTIFICATE and not (config.certificate and config.authority):
        raise ConfigError(
            "[central] trust = 'certificate' needs certificate, key and authority",
            "files that the service may read: its own certificate and key, and that of who signed the nodes'",
        )
    if not config.certificate:
        return None
    for name, path in (("certificate", config.certificate), ("key", config.key), ("authority", config.authority)):
        try:
            if path:
                os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            raise ConfigError(
                f"[central] {name}: {path} cannot be read: {error.strerror}", f"it has to be readable by {own_name()}"
            ) from None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        # A key behind a passphrase is refused: nobody is there to be asked.
        context.load_cert_chain(config.certificate, config.key or None, password=lambda: "")
        if config.trust == CERTIFICATE:
            context.load_verify_locations(config.authority)
            context.verify_mode = ssl.CERT_REQUIRED
    except OSError as error:
        raise ConfigError(f"the certificates of [central] cannot be used: {error}") from None
    return context
