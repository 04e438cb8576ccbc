"""The central service, as this machine sees it: whether its accounts are apart, and whether it answers."""

from __future__ import annotations

from collections.abc import Iterator

from piolet.base.errors import ConfigError, PioletError
from piolet.doctor.findings import BAD, OK, SKIPPED, Finding, Machine
from piolet.site.config import Config
from piolet.system.accounts import uid_of
from piolet.transport.asking import Asker, Peer

_WAIT_S = 5.0


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
    if not said.get("judging"):
        hint = "journalctl -u piolet-central says which; mend it, and start the service again"
        yield Finding("central", BAD, "the central service keeps records, and judges them no more: a rule broke", hint)
        return
    yield Finding("central", OK, f"the central service answers, and has records of {said.get('nodes')} nodes")


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
