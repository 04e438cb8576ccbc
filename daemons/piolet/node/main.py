"""`pioletd`: starts the monitor (root) and the server (an account without privileges) and joins them.

Runs in the foreground, logs to stderr, ends with SIGTERM; a service manager does the rest. When one of its processes
ends, all do. Containers of running steps outlive it: their tasks hold the namespaces.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import pwd
import resource
import select
import signal
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from piolet.base.errors import ConfigError, PioletError
from piolet.container import labels, worker
from piolet.container.worker import Means
from piolet.node import places
from piolet.node.root import imagemounts
from piolet.node.root.devicemapper import DeviceMapper
from piolet.node.root.monitor import Monitor
from piolet.node.root.mountedimages import Images
from piolet.node.root.state import StepFiles
from piolet.node.scoring import HUNG_GPUS
from piolet.node.settings import Settings
from piolet.observe.settings import is_on
from piolet.system import linux, notify, peer
from piolet.vet.settings import VetConfig

if TYPE_CHECKING:
    from piolet.node.root.zygote import Work

_SERVER_END_S = 2.0
_AGAIN_S = 0.2
_BUFFER = 4 << 20


def run(config: Settings, program: tuple[str, ...] = ()) -> int:
    """Run the daemon; return its exit status. `program` is the command `piolet`.

    Raises PioletError: it does not come to that.
    """
    if os.geteuid() != 0:
        raise PioletError("pioletd must be started as root", "start it with: systemctl start pioletd.service")
    server_account = _account(config.node.account)
    images_account = _account(config.images.account)
    state = Path(config.node.state)
    socket_path = Path(config.node.socket)
    vet_path = Path(config.node.vet_socket)
    score_path = Path(config.node.score_socket)
    home = os.stat("/proc/self/ns/mnt").st_ino
    try:
        base = _prepare_directories(state, socket_path, vet_path, score_path, Path(config.events.socket))
        imagemounts.forget(str(state))
        # Only Slurm's slurmstepd, which is root, has business at the first and the last.
        listener, score_listener = places.listener_at(socket_path, 0o600), places.listener_at(score_path, 0o600)
        # Everybody may connect and is told in a sentence what is not for them; the kernel says who it is.
        vet_listener = places.listener_at(vet_path, 0o666)
        scored = places.directory_of(server_account, state / "scored")
        with contextlib.suppress(OSError):  # who has mended a GPU starts the daemon again
            (scored / HUNG_GPUS).unlink()
        places.directory_of(server_account, Path(config.vet.spool))
        places.spool_of(server_account, config.events.spool, config)
        places.spool_of(server_account, config.observe.journal, config)
        outcomes = places.hear(Path(config.events.socket))
    except OSError as error:
        raise PioletError(f"cannot prepare {error.filename or state}: {error.strerror}") from None
    # Every step takes a descriptor in each half, and the usual soft limit of 1024 is for select().
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    ours, theirs = linux.message_pair(_BUFFER)
    desk, zygote = linux.message_pair(_BUFFER)
    vetting = os.fork()
    if vetting == 0:
        _warm(zygote, peer.file_of(vet_path), config.vet, server_account.pw_uid)
    alive, ends = linux.message_pair(_BUFFER)
    scoring = os.fork()
    if scoring == 0:
        _keep(score_listener, ends, server_account, scored, config)
    observing = os.fork() if is_on(config.observe.steps, config.central.url) else -1
    if observing == 0:
        _observe(ends, server_account, config)
    eye, seen = linux.message_pair(_BUFFER)
    watching = os.fork()
    if watching == 0:
        _watch(seen, server_account, state, config)
    place = labels.place(socket.gethostname().partition(".")[0], str(state))
    server = os.fork()
    if server == 0:
        _serve(listener, theirs, (vet_listener, desk, eye, outcomes), server_account, config, place)
    for end in (theirs, listener, vet_listener, score_listener, desk, zygote, ends, eye, seen, outcomes):
        end.close()
    try:
        siblings = {
            os.pidfd_open(vetting): "the vetting process", os.pidfd_open(scoring): "the scoring process",
            os.pidfd_open(watching): "the watching process",
        }  # fmt: skip
        if observing > 0:
            siblings[os.pidfd_open(observing)] = "the process that records steps"
        return _monitor(ours, server, siblings, images_account, (base, state), config, (place, home), program)
    finally:
        alive.close()
        for path in (socket_path, vet_path, score_path, Path(config.events.socket)):
            path.unlink(missing_ok=True)


def _account(name: str) -> pwd.struct_passwd:
    try:
        account = pwd.getpwnam(name)
    except KeyError:
        raise ConfigError(
            f"the account '{name}' of the configuration does not exist",
            f"make it with: useradd --system --no-create-home --shell /usr/sbin/nologin {name}",
        ) from None
    if account.pw_uid == 0:
        raise ConfigError(f"the account '{name}' of the configuration is root; it must have no privileges")
    return account


def _prepare_directories(state: Path, *sockets: Path) -> Path:
    """Make what is needed; return a directory in a tmpfs that only this process and its children see."""
    for directory in {state, *(path.parent for path in sockets)}:
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        status = directory.stat()
        if status.st_uid != 0 or status.st_mode & 0o022:
            raise PioletError(
                f"{directory} can be written by others than root",
                f"mend it with: chown root {directory}; chmod 755 {directory}",
            )
    base = state / "mnt"
    base.mkdir(mode=0o700, exist_ok=True)
    # Mounts of the host come in, ours stay in: whatever kills us takes them along.
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount("none", "/", None, linux.MS_REC | linux.MS_SLAVE)
    linux.mount("pioletd", str(base), "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=0755,size=16m")
    # No user walks to a mounted image, from whatever namespace: who may use it is handed a mount of it.
    for name, mode in (("images", 0o700), ("build", 0o755)):
        (base / name).mkdir(mode=mode)
    return base


def _leave_alone(images: Path) -> int:
    """Have this process go where no other is, with a place for images; return what leads back to where all others are.

    A process that is a user's, with a mount namespace that came from this one, would have the images in its own.
    """
    others = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount("pioletd", str(images), "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=0700,size=1m")
    return others


def _warm(channel: socket.socket, listener: peer.File, vet: VetConfig, server: int) -> None:
    """Root's process for vetting: it forks the zygote, and again when that has died. Never returns."""
    status = 1
    try:
        linux.set_name("pioletd-vet")
        linux.close_all_but({channel.fileno()})
        linux.die_with_parent(signal.SIGKILL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        while True:
            zygote = os.fork()
            if zygote == 0:
                _be_zygote(channel, listener, vet, server)
            _, status = os.waitpid(zygote, 0)
            if status == 0:
                break
            logging.getLogger("pioletd").error("the process for vetting has died; it is started again")
            time.sleep(_AGAIN_S)
    except Exception:
        logging.getLogger("pioletd").exception("the process for vetting failed")
    finally:
        os._exit(1 if status else 0)


@contextlib.contextmanager
def _whole_process(what: str) -> Iterator[None]:
    """Run the block as all that is left of this process: it never returns, and what it fails of is logged."""
    status = 1
    try:
        yield
        status = 0
    except Exception:
        logging.getLogger("pioletd").exception("%s failed", what)
    finally:
        os._exit(status)


def _be_zygote(channel: socket.socket, listener: peer.File, vet: VetConfig, server: int) -> None:
    """The zygote's process. Never returns."""
    with _whole_process("the process for vetting"):
        linux.set_name("pioletd-warm")
        linux.die_with_parent(signal.SIGKILL)
        from piolet.node.root import sitepast
        from piolet.node.root.zygote import Zygote

        past = os.path.join(vet.spool, sitepast.FILE), server
        Zygote(channel, lambda: _prepare_vetting(vet), listener, past).run()


def _keep(
    listener: socket.socket, stop: socket.socket, account: pwd.struct_passwd, files: Path, config: Settings
) -> None:
    """The keeper's process: root's, for scoring. Never returns."""
    with _whole_process("the process for scoring"):
        linux.set_name("pioletd-keeper")
        linux.close_all_but({listener.fileno(), stop.fileno()})
        linux.die_with_parent(signal.SIGKILL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        from piolet.node.root.keeper import Keeper

        Keeper(account, lambda keeper: _sample(listener, keeper, files, config), stop, config.score).run()


def _sample(listener: socket.socket, keeper: socket.socket, files: Path, config: Settings) -> None:
    """The sampler's process, as the account."""
    from piolet.node.server.scoredesk import ScoreDesk
    from piolet.samples.sampler import Sampler

    sampler = Sampler(totals=bool(config.score.prometheus))
    if config.score.prometheus:
        from piolet.samples.metrics import serve

        try:
            serve(sampler, socket.gethostname().partition(".")[0], config.score.prometheus)
        except PioletError as error:
            logging.getLogger("pioletd").error("%s", error.message)
    ScoreDesk(listener, keeper, files, sampler).run()


def _observe(stop: socket.socket, account: pwd.struct_passwd, config: Settings) -> None:
    """Root's process for what is recorded of every step. Never returns."""
    with _whole_process("the process that records steps"):
        linux.set_name("pioletd-records")
        linux.close_all_but({stop.fileno()})
        linux.die_with_parent(signal.SIGKILL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        from piolet.node.root.observing import Observing
        from piolet.observe.choosing import needs

        Observing(account, lambda *given: _record(config, *given), needs(config.observe.without), stop).run()


def _record(config: Settings, channel: socket.socket, held: Mapping[str, int]) -> None:
    """The sampler of all steps, as the account."""
    from piolet.node.server.observer import observe

    observe(config, channel, held)


def _watch(server: socket.socket, account: pwd.struct_passwd, state: Path, config: Settings) -> None:
    """The watcher's process: what it needs root for it opens, and is then the account. Never returns."""
    with _whole_process("the process that watches the hardware"):
        linux.set_name("pioletd-watcher")
        kmsg = position = -1
        untaken = os.open(f"{config.events.socket}.lost", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        if config.events.hardware:
            with contextlib.suppress(OSError):
                kmsg = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            position = os.open(state / "kmsg", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        linux.close_all_but({server.fileno(), kmsg, position, untaken} - {-1})
        linux.become(account.pw_uid, account.pw_gid, [account.pw_gid])
        linux.die_with_parent(signal.SIGKILL)
        linux.no_new_privileges()
        linux.not_dumpable()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        from piolet.node.root.watcher import Watcher

        Watcher(server, (kmsg, position, untaken), config.events.heartbeat_s, config.events.hardware).run()


def _prepare_vetting(vet: VetConfig) -> Work:
    from piolet.vet.node import prepare

    return prepare(vet.evals, vet.users)


def _serve(
    listener: socket.socket,
    monitor: socket.socket,
    others: tuple[socket.socket, ...],
    account: pwd.struct_passwd,
    config: Settings,
    place: str,
) -> None:
    """The server's process. Never returns."""
    with _whole_process("the server"):
        linux.set_name("pioletd-server")
        linux.close_all_but({listener.fileno(), monitor.fileno(), *(end.fileno() for end in others)})
        linux.become(account.pw_uid, account.pw_gid, [account.pw_gid])
        linux.die_with_parent(signal.SIGKILL)
        linux.no_new_privileges()
        linux.not_dumpable()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # Imported as the account: whatever its modules do, they never do it as root.
        from piolet.node.server.desks import Desks
        from piolet.node.server.server import Server

        desks = Desks(config, *others)
        Server(listener, monitor, config, place, desks.open, desks.refused).run()
        desks.close()


def _monitor(
    channel: socket.socket,
    server: int,
    siblings: dict[int, str],
    images: pwd.struct_passwd,
    room: tuple[Path, Path],
    config: Settings,
    where: tuple[str, int],
    program: tuple[str, ...],
) -> int:
    (base, state), (place, home) = room, where
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_write)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    files = StepFiles(str(state / "steps"))
    namespace = _leave_alone(base / "images")
    store = _images(config, images, base / "images", state, place)
    worker.get_ready()
    # The garbage collector would touch, and so copy, every page in each forked worker.
    gc.collect()
    gc.freeze()
    gc.disable()
    logging.getLogger("pioletd").info("ready: %s", config.node.socket)
    notify.ready()
    try:
        means = Means(str(base / "build"), config.environment.crun, config.environment.squashfuse, program)
        listener = peer.file_of(config.node.socket)
        monitor = Monitor(channel, store, files, means, listener, config.node.image_idle_s, place, namespace, home)
        well = monitor.run(wake_read, siblings)
    finally:
        channel.close()
    return _wait_server(server) if well else 1


def _images(config: Settings, account: pwd.struct_passwd, base: Path, state: Path, place: str) -> Images:
    """Return what mounts images, by the way that this kernel has, and say which that is."""
    log = logging.getLogger("pioletd.monitor")
    mapper = DeviceMapper(place)
    # Without device mapper there is nothing that an earlier daemon could have left of it.
    with contextlib.suppress(OSError):
        for name in mapper.sweep(config.images.store):
            log.info("a view of an image that an earlier pioletd was killed over is removed: %s", name)
    choice = imagemounts.choose(config.node.image_mounts, str(base), mapper, config.environment.squashfuse)
    log.log(logging.INFO if choice.way else logging.ERROR, "%s", choice.describe())
    try:
        imagemounts.note(choice, str(state))
    except OSError as error:
        log.warning("what the kernel can do is not noted in %s: %s", state, error.strerror)
    views, verify = config.node.views_per_image, config.images.verify
    return Images(config.images.store, account.pw_uid, str(base), choice, mapper, views, verify)


def _wait_server(server: int) -> int:
    """Return the exit status of the server, which ends with its channel; one that is stopped is killed."""
    ended = os.pidfd_open(server)
    if not select.select([ended], [], [], _SERVER_END_S)[0]:
        signal.pidfd_send_signal(ended, signal.SIGKILL)
    os.close(ended)
    _, status = os.waitpid(server, 0)
    return 1 if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)
