"""The central service, as this machine sees it: whether its accounts are apart, and whether it answers."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator

from piolet.base.errors import ConfigError, EventError, PioletError, SlurmError
from piolet.base.texts import counted
from piolet.doctor.findings import BAD, OK, SKIPPED, WARN, Finding, Machine
from piolet.events.envelope import LINE_MAX, decode
from piolet.events.reader import Reader
from piolet.forward import acknowledged
from piolet.site.config import Config
from piolet.slurm import past
from piolet.system.accounts import uid_of
from piolet.transport.asking import Asker, Peer

_WAIT_S = 5.0
_SOON_S = 60.0  # so long a first record takes at most, and others beyond what they wait for


def central(machine: Machine) -> Iterator[Finding]:
    """Whether the central service has an account of its own, and answers whoever asks here; nothing where none is."""
    config = machine.config
    if not config.central.url:
        return
    try:
        own = uid_of(config.central.account, "[central] account")
    except ConfigError as error:
        yield Finding("central", BAD, error.message, error.hint or "")
        return
    yield from _apart(config, own)
    if machine.here("piolet-central") and config.central.accounting_s:
        yield from hidden(machine)
    if machine.here("pioletd"):
        yield from delivered(config, time.time())
    peer = Peer(config.central.url, own, config.central.munge_socket, config.central.authority, timeout_s=_WAIT_S)
    if config.central.trust == "certificate":
        peer = Peer(f"unix:{config.central.socket}", own, timeout_s=_WAIT_S)
        if not machine.here("piolet-central"):
            yield Finding("central", SKIPPED, "without MUNGE the central service is asked on its own machine")
            return
    try:
        said = Asker(peer).ask("GET", "/v1/status").said
    except PioletError as error:
        yield Finding("central", BAD, error.message, error.hint or "its log says more: journalctl -u piolet-central")
        return
    if said.get("failing"):
        hint = "df on its directory, or systemctl status postgresql; nodes send what waits by themselves"
        yield Finding("central", BAD, f"the central service keeps no records: {said['failing']}", hint)
        return
    if not said.get("judging"):
        hint = "journalctl -u piolet-central says which; mend it, and start the service again"
        yield Finding("central", BAD, "the central service keeps records, and judges them no more: a rule broke", hint)
        return
    yield Finding(
        "central", OK, f"the central service answers, and has records of {counted(int(said.get('nodes') or 0), 'node')}"
    )


def _apart(config: Config, own: int) -> Iterator[Finding]:
    others = {
        "0": "root",
        config.node.account: "[node] account",
        config.forward.account: "[forward] account",
        config.images.account: "[images] account",
    }
    for name, what in others.items():
        try:
            number = uid_of(name, what)
        except ConfigError:
            continue
        if number == own:
            yield Finding(
                "central", BAD, f"the account {config.central.account} of the central service is that of {what}",
                "give the service an account of its own: whoever breaks a node's daemon would speak for all nodes",
            )  # fmt: skip
            return
    yield Finding("central", OK, f"the central service has an account of its own, {config.central.account}")


def hidden(machine: Machine) -> Iterator[Finding]:
    """Whether Slurm's accounting shows the service what it asks for; it answers with less, and says nothing."""
    account = machine.config.central.account
    sacctmgr = shutil.which("sacctmgr", path=machine.path)
    if sacctmgr is None:
        return
    try:
        words = past.hidden(account, sacctmgr)
    except SlurmError as error:
        hint = "see to slurmdbd; where there is none: accounting_s = 0 in [central] of piolet.toml"
        yield Finding("central", WARN, f"Slurm's accounting is not known: {error.message}", hint)
        return
    if words:
        what = " and ".join(sorted(words))
        hint = "docs/central.md says what is missing then, and what showing it to the account takes"
        yield Finding("central", WARN, f"slurmdbd's PrivateData hides {what} from {account}", hint)


def delivered(config: Config, now: float) -> Iterator[Finding]:
    """Whether what this node records comes to the service, as far as the forwarder's file says."""
    have = acknowledged.load(config.forward.state)
    reader = Reader(config.events.spool)
    try:
        waiting = [reader.read(epoch, have.get(epoch, 0), 1, LINE_MAX) for epoch in reader.streams()]
    except OSError:
        return  # what is written, and where, is said of events
    since = now
    for line in (lines[0] for lines in waiting if lines):
        try:
            since = min(since, decode(line).time)
        except EventError:
            continue
    if now - since <= _SOON_S + (1.2 * config.forward.beats_s if have else 0):
        return
    text = "nothing of what this node records has ever come to the central service: it waits here"
    if have:
        minutes = counted(round((now - since) / 60), "minute")
        text = f"what this node has recorded for {minutes} has not come to the central service: it waits here"
    hint = "journalctl -u piolet-forward says what is in its way; systemctl status piolet-forward, whether it runs"
    yield Finding("central", BAD, text, hint)
