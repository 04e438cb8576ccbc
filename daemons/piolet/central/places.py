"""Where nodes are, so that a batch of one node cannot be sent from another.

Slurm's NodeAddr says it, or a file of the site where MUNGE knows the node by another address. A node that neither names
is none of this cluster.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Mapping

from piolet.base.errors import ConfigError, SlurmError

_KEPT_S = 600.0
_AGAIN_S = 20.0
_LONGEST = 1 << 24

Ask = Callable[[], Mapping[str, str]]


def from_file(path: str) -> dict[str, frozenset[str]]:
    """Return the addresses in a file of lines NODE ADDRESS...; '#' begins a comment. Raises ConfigError."""
    found: dict[str, frozenset[str]] = {}
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(_LONGEST)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"[central] addresses: {path} cannot be read: {error}") from None
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if len(words) == 1:
            raise ConfigError(f"{path}:{number}: {words[0]} has no address", "write: NODE ADDRESS...")
        if words:
            found[words[0]] = frozenset(words[1:])
    return found


class Places:
    """The addresses of a cluster's nodes. For use by several threads."""

    def __init__(
        self,
        fixed: Mapping[str, frozenset[str]],
        ask: Ask,
        clock: Callable[[], float] = time.monotonic,
        resolve: Callable[[str], frozenset[str]] | None = None,
    ) -> None:
        self._fixed = fixed
        self._ask = ask
        self._clock = clock
        self._resolve = resolve or resolved
        self._named: Mapping[str, str] = {}
        self._asked = float("-inf")
        self._alone = ask is no_slurm  # the file is all there is
        self._known: dict[str, tuple[float, frozenset[str]]] = {}
        self._lock = threading.Lock()

    def of(self, node: str) -> frozenset[str]:
        """Return the IPv4 addresses of a node; none: there is no such node, or its name has no address.

        Raises SlurmError: Slurm cannot be asked now.
        """
        if node in self._fixed:
            return self._fixed[node]
        with self._lock:
            now = self._clock()
            then, found = self._known.get(node, (float("-inf"), frozenset()))
            if now - then < _KEPT_S:
                return found
            # A node that is new, or was moved: Slurm is asked for all of them, not too often.
            if now - self._asked > (_KEPT_S if node in self._named else _AGAIN_S):
                self._asked = now
                self._named = self._ask()
            if node not in self._named:
                return frozenset()
            found = self._resolve(self._named[node])
            if found:
                self._known[node] = now, found
            return found

    def is_gone(self, node: str) -> bool:
        """Return whether a node that once was one of this cluster is none any more, as far as is known.

        Slurm is not asked for it: what it said last, for the sake of nodes that send, is minutes old. Where it has said
        nothing yet, or shows no node at all, no node is gone.
        """
        named = self._named
        return node not in self._fixed and node not in named and bool(named or (self._alone and self._fixed))


def resolved(name: str) -> frozenset[str]:
    """Return the IPv4 addresses of a name, none where it has none."""
    try:
        return frozenset(str(one[4][0]) for one in socket.getaddrinfo(name, None, socket.AF_INET))
    except (OSError, UnicodeError):
        return frozenset()


def no_slurm() -> Mapping[str, str]:
    """Refuse: a service that is to know its nodes from a file alone."""
    raise SlurmError("there is no Slurm to ask for the addresses of nodes", "write them into [central] addresses")
