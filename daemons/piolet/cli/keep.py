"""`piolet env save`: what a step changed in its container, as an image on top of the one that it had.

The command looks for the step, and starts `piolet env keep` where it runs: in a step of the same job, if need be.
That does the work, as the user: it reads the container's root, which the kernel gives to nobody else, and writes the
file; or an archive, which is brought into the store like one of `docker save`. At a step's end, the keeper
(container/keeper.py) starts it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import syslog
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from piolet.base import texts, units
from piolet.base.errors import ImageError, PioletError, SlurmError
from piolet.cli import attach
from piolet.cli.main import printable
from piolet.cli.progress import progress
from piolet.container import asroot, keeper, labels, view
from piolet.container.plan import PlannedSave
from piolet.environment import around, pinned
from piolet.images import client, newfile, save
from piolet.images.reference import is_path
from piolet.images.saved import Count, Root
from piolet.site.config import Config
from piolet.transport import packets

_ORDER_MAX = 8 << 20
_LATE_S = 10
_OURS = (b"run/piolet", asroot.APT_SETTINGS.lstrip("/").encode())


@dataclass(frozen=True)
class Order:
    """What `piolet env keep` is to do, from its standard input.

    seen     what the keeper knows of the container's mounts; the root comes as a descriptor. None: it is looked for
    archive  where an archive is to be written, which is filed elsewhere; or ''
    force    a file that is there is replaced
    quiet    no progress is shown
    """

    save: PlannedSave
    seen: view.Seen | None = None
    archive: str = ""
    force: bool = False
    quiet: bool = False


def run(args: argparse.Namespace, config: Config) -> int:
    """Do `piolet env save`."""
    wanted = _wanted(args.target)
    if wanted.file:
        newfile.refuse(wanted.file, replace=args.force, hint="--force replaces it; or name another file")
    step, node = attach.choose(args.step, args.node)
    wanted = replace(_described(step.name, wanted, config), step=step.name)
    words = [os.path.abspath(sys.argv[0]), *(["--config", args.config] if args.config else []), "env", "keep"]
    here = os.environ.get("SLURM_JOB_ID") == step.name.partition(".")[0] and os.environ.get("SLURMD_NODENAME") == node
    if not here:
        job = step.name.partition(".")[0]
        srun = ["srun", "--overlap", f"--jobid={job}", "-N1", "-n1", "-w", node, "--environment=none"]
        words = [*srun, "--job-name=piolet-save", *words]
    with _archive(wanted) as archive:
        order = Order(wanted, None, archive, args.force, args.quiet)
        _start(words, order, None if here else attach.outside(os.environ))
        if archive:
            done = _file(archive, wanted, config, quiet=args.quiet)
            print(f"{done['reference']} {done['digest']}")
    return 0


def _wanted(target: str) -> PlannedSave:
    if not is_path(target):
        return PlannedSave("", name=around.check_name(target), store=client.own_store() or "")
    path = os.path.abspath(target)
    if not path.endswith((".sqsh", ".squashfs")):
        raise ImageError(f"{path} does not end in .sqsh", "name a SquashFS file, or NAME[:TAG] for the store")
    return PlannedSave("", file=path)


def _described(step: str, wanted: PlannedSave, config: Config) -> PlannedSave:
    """Return what the step's image says of itself beside where it is to be saved, as far as that is known here."""
    wanted = replace(wanted, home=os.path.expanduser("~"))
    try:
        known = next(one.definition for one in pinned.find(os.environ, step) if one.definition.image)
        info = client.resolve(pinned.pinned_name(known), config.images, pull=False, progress=lambda _: None)
    except (PioletError, StopIteration) as error:
        why = error.message if isinstance(error, PioletError) else "its image is not known here"
        _warn(f"variables, working directory and entrypoint of the image are not kept: {why}")
        return wanted
    env, marks = (tuple(f"{name}={text}" for name, text in of.items()) for of in (info.env, info.labels))
    return replace(wanted, env=env, labels=marks, entrypoint=info.entrypoint, workdir=info.workdir)


@contextlib.contextmanager
def _archive(wanted: PlannedSave) -> Iterator[str]:
    """Give the path of an archive in the user's home, which nodes share, and remove it; '' where none is needed."""
    if wanted.file:
        yield ""
        return
    folder = tempfile.mkdtemp(prefix=".piolet-save-", dir=wanted.home or os.path.expanduser("~"))
    try:
        yield f"{folder}/image.tar"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _start(words: list[str], order: Order, environ: dict[str, str] | None) -> None:
    try:
        done = subprocess.run(words, input=packets.encode(order), check=False, env=environ)
    except OSError as error:
        raise SlurmError(f"cannot start {words[0]}: {error.strerror}") from None
    if done.returncode:
        raise ImageError(f"the container of step {order.save.step} was not saved", "the reason is above")


def _file(archive: str, wanted: PlannedSave, config: Config, *, quiet: bool) -> dict[str, Any]:
    from piolet.cli import image

    with _store(wanted.store):
        return image.bring("docker-archive", archive, wanted.name, config, quiet=quiet)


@contextlib.contextmanager
def _store(path: str) -> Iterator[None]:
    """Have the block use the user's own store at `path`, or the site's."""
    before = os.environ.pop("EDF_IMAGESTORE", None)
    if path:
        os.environ["EDF_IMAGESTORE"] = path
    try:
        yield
    finally:
        os.environ.pop("EDF_IMAGESTORE", None)
        if before is not None:
            os.environ["EDF_IMAGESTORE"] = before


def keep(config: Config) -> int:
    """Do `piolet env keep`; at a step's end what fails is a warning, and told to the node's log."""
    order = packets.decode(Order, sys.stdin.buffer.read(_ORDER_MAX))
    at_the_end = order.seen is not None
    if at_the_end:
        os.environ["HOME"] = order.save.home
    try:
        with progress(quiet=at_the_end or order.quiet) as show:
            count, warnings = _keep(order, config, show)
        for text in warnings:
            _warn(text)
        left_out = f", {count.specials} device nodes, FIFOs and sockets left out" if count.specials else ""
        where = order.save.file or order.archive or f"localhost/{order.save.name}"
        size = f"{units.size(count.bytes)}, {texts.counted(count.names, 'name')}"
        if not order.archive:
            print(f"piolet: the container of step {order.save.step} is saved: {printable(where)} ({size}{left_out})")
    except (PioletError, OSError) as error:
        failure = error if isinstance(error, PioletError) else ImageError(f"{error.strerror}: {error.filename or '?'}")
        if not at_the_end:
            raise failure from None
        _warn(f"the container was not saved: {failure.render()}")
        _log(order.save, failure)
        return 1
    return 0


def _keep(order: Order, config: Config, show: Callable[[str], None]) -> tuple[Count, list[str]]:
    os.nice(10)
    wanted = order.save
    if order.seen is None:
        place = labels.place(socket.gethostname().partition(".")[0], config.node.state)
        seen = view.of(view.find(wanted.step, place))
    else:
        seen = view.View(keeper.TREE, tuple(order.seen.points), order.seen.below)
    directory = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=seen.tree)
    points = [os.fsencode(path.lstrip("/")) for path in seen.points]
    root = Root(directory, _OURS, points, below=seen.below)
    save.check(root)
    marks = dict(text.partition("=")[::2] for text in wanted.labels)
    base = save.Base(wanted.env, wanted.entrypoint, wanted.workdir, marks)
    if wanted.file:
        return save.to_file(root, base, wanted.file, config.images, show, force=order.force)
    with contextlib.ExitStack() as stack:
        path = order.archive or stack.enter_context(_archive(wanted))
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            count = save.to_archive(root, base, file, config.images, show)
        finally:
            os.close(file)
        if not order.archive:
            _file(path, wanted, config, quiet=True)
    return count, []


def _warn(text: str) -> None:
    print(f"piolet: warning: {printable(text)}", file=sys.stderr)


def _log(of: PlannedSave, failure: PioletError) -> None:
    """Have the node's log tell of it, unless nobody takes it in time."""
    sentence = "".join(c if c.isprintable() else "?" for c in failure.message)

    def give_up(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(_LATE_S)
    with contextlib.suppress(OSError):
        syslog.openlog("piolet", syslog.LOG_PID, syslog.LOG_USER)
        syslog.syslog(syslog.LOG_WARNING, f"step {of.step} of uid {os.getuid()} is not saved: {sentence}"[:900])
    signal.alarm(0)
