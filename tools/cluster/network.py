"""Addresses and ports: loopback only, and only ports that nobody has."""

from __future__ import annotations

import random
import socket
from collections.abc import Mapping, Sequence

LOOPBACK = "127.0.0.1"
# Below 32768, where Linux begins to hand out ports to outgoing connections, so that no srun takes a
# port between the moment when it is chosen and the moment when its owner binds it.
PORTS = range(20000, 32000)


def own_name_address(name: str | None = None) -> str | None:
    """Return what this machine's own name means, if that is on loopback, else None.

    Slurm commands that stay on loopback (NoInAddrAny) listen on that address and nowhere else.
    """
    try:
        address = socket.gethostbyname(name or socket.gethostname())
    except OSError:
        return None
    return address if address.startswith("127.") else None


def is_free(port: int) -> bool:
    """Tell whether the port could be bound on every address just now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))
        except OSError:
            return False
        return True


def choose_ports(names: Sequence[str], before: Mapping[str, int], rng: random.Random) -> dict[str, int]:
    """Return a free port for each name; the one that it had before, where that is still free.

    The registry's port is part of an image's reference, so it should not change without need.
    """
    chosen: dict[str, int] = {}
    taken: set[int] = set()
    for name in names:
        port = before.get(name, 0)
        if port in PORTS and port not in taken and is_free(port):
            chosen[name] = port
            taken.add(port)
    candidates = iter(rng.sample(PORTS, len(PORTS)))
    for name in names:
        if name in chosen:
            continue
        port = next(p for p in candidates if p not in taken and is_free(p))
        chosen[name] = port
        taken.add(port)
    return chosen


def accepts(address: str, port: int) -> bool:
    """Tell whether somebody accepts connections there."""
    try:
        with socket.create_connection((address, port), timeout=1.0):
            return True
    except OSError:
        return False


def socket_accepts(path: str) -> bool:
    """Tell whether somebody accepts connections at the unix socket `path`, of either kind."""
    for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
        with socket.socket(socket.AF_UNIX, kind) as client:
            client.settimeout(1.0)
            try:
                client.connect(path)
            except OSError:
                continue
            return True
    return False
