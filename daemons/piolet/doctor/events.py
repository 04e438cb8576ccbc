"""The records of what happens on this node: whether they are written, and name the right cluster."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import stat
import time
from collections.abc import Iterator

from piolet.base import texts
from piolet.doctor.findings import BAD, OK, SKIPPED, WARN, Finding, Machine, ask
from piolet.events import parts

_BEATS = 5


def events(machine: Machine) -> Iterator[Finding]:
    """Whether this node's records are written now, name its cluster, and whether outcomes of steps are taken."""
    if not machine.here("pioletd"):
        return
    own = machine.config.events
    scontrol = shutil.which("scontrol", path=machine.path)
    done = ask(machine, scontrol, "show", "config") if scontrol is not None else None
    cluster = re.search(r"^ClusterName\s*=\s*(\S+)", done.stdout, re.MULTILINE) if done is not None else None
    if cluster is not None and cluster[1] != own.cluster:
        hint = f'set cluster = "{cluster[1]}" in [events] of piolet.toml, and start pioletd again'
        yield Finding("events", WARN, f"records name the cluster '{own.cluster}', and Slurm '{cluster[1]}'", hint)
    try:
        there = [part for part in parts.parts(own.spool) if part.uid is None]
        newest = max((os.lstat(os.path.join(own.spool, part.name)).st_mtime for part in there), default=None)
    except PermissionError:
        yield Finding("events", SKIPPED, f"only root can see whether records are written in {own.spool}")
        return
    except OSError as error:
        hint = "systemctl restart pioletd.service makes the directory"
        yield Finding("events", BAD, f"no records are written in {own.spool}: {error.strerror}", hint)
        return
    silent = None if newest is None else time.time() - newest
    if silent is None or silent > _BEATS * own.heartbeat_s:
        since = "never" if silent is None else f"for {texts.counted(round(silent / 60), 'minute')} not"
        hint = "see the log of pioletd.service, and whether the disk is full or hung"
        yield Finding("events", BAD, f"this node has {since} said in {own.spool} that it is well", hint)
    else:
        yield Finding("events", OK, f"records are written in {own.spool}")
    if machine.config.central.url:
        yield from _forwarded(machine)
    vet = machine.config.vet.spool
    old = [name for name in os.listdir(vet) if name.startswith("verdicts-")] if os.path.isdir(vet) else []
    if old:
        text = f"{texts.counted(len(old), 'file')} of an earlier release with verdicts in {vet}: nothing reads them now"
        yield Finding("events", WARN, text, f"keep what you want of it, and rm {vet}/verdicts-*.jsonl")
    lost = f"{own.socket}.lost"
    count = os.lstat(lost).st_size if os.path.exists(lost) else 0
    if count:
        text = f"pioletd took no outcome of {texts.counted(count, 'step')} since it last counted them"
        yield Finding("events", WARN, text, "if they grow more, see the log of pioletd.service")


def _forwarded(machine: Machine) -> Iterator[Finding]:
    """Whether the forwarder may read what is to go to the central service: by its group, which new files inherit."""
    config = machine.config
    try:
        group = pwd.getpwnam(config.forward.account).pw_gid
    except KeyError:
        return  # that it is not there is said elsewhere
    for spool in (config.events.spool, config.observe.journal):
        try:
            refused = [part.name for part in parts.parts(spool) if _group(os.path.join(spool, part.name)) != group]
            status = os.lstat(spool)
        except OSError:
            continue
        if refused or status.st_gid != group or not status.st_mode & stat.S_ISGID:
            what = texts.counted(len(refused), "file") if refused else "new files"
            text = f"{what} in {spool} cannot be read by {config.forward.account}, and what is in them goes nowhere"
            yield Finding("events", BAD, text, "systemctl restart pioletd.service mends it")


def _group(path: str) -> int:
    return os.lstat(path).st_gid
