"""How this machine reaches the central service, as the site's configuration says."""

from __future__ import annotations

from piolet.base.errors import ConfigError
from piolet.site.config import Config
from piolet.system.accounts import uid_of
from piolet.transport.asking import Peer

CERTIFICATE = "certificate"


def of_node(config: Config, timeout_s: float = 60.0) -> Peer:
    """Return how a node's forwarder asks. Raises ConfigError."""
    central, forward = config.central, config.forward
    if not central.url:
        raise ConfigError(
            "there is no central service here: [central] url is empty",
            "an administrator sets it in piolet.toml, for example to http://head:6828",
        )
    if central.trust != CERTIFICATE:
        uid = uid_of(central.account, "[central] account")
        return Peer(central.url, uid, central.munge_socket, central.authority, timeout_s=timeout_s)
    return Peer(central.url, 0, "", central.authority, forward.certificate, forward.key, timeout_s)


def of_user(config: Config, timeout_s: float = 30.0) -> Peer:
    """Return how whoever types a command asks. Raises ConfigError."""
    central = config.central
    if central.trust == CERTIFICATE:  # nodes have certificates, and users none
        return Peer(f"unix:{central.socket}", 0, timeout_s=timeout_s)
    return of_node(config, timeout_s)
