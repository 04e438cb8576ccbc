"""The server's part in events that others see: takes what root's watcher says, and puts it into the spool."""

from __future__ import annotations

import json
import logging
import re
import selectors
import socket

from piolet.base.errors import WireError
from piolet.events.spool import Spool
from piolet.node import watching
from piolet.node.shares import Sparse
from piolet.node.watching import Seen
from piolet.transport import packets

_log = logging.getLogger("pioletd")

_AT_ONCE = 64
_SUBJECT = re.compile(r"(?:gpu|port|fs|nic):[\x21-\x7e]{1,200}")


class EventDesk:
    """Hears the watcher in the server's loop; `watcher` is the pair's end."""

    def __init__(self, selector: selectors.BaseSelector, watcher: socket.socket, spool: Spool) -> None:
        self._selector = selector
        self._watcher = watcher
        self._spool = spool
        self._wrong = Sparse(_log)
        watcher.setblocking(False)
        selector.register(watcher, selectors.EVENT_READ, self._on_watcher)

    def _on_watcher(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                data = self._watcher.recv(watching.MESSAGE_MAX)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                _log.error("the process that watches this node's hardware has ended")
                self._selector.unregister(self._watcher)
                return
            try:
                self._take(packets.decode(Seen, data))
            except WireError as error:
                self._wrong.error("what the watcher said is not understood: %s", error)

    def _take(self, seen: Seen) -> None:
        body = packets.parse(seen.body)
        if seen.kind not in watching.KINDS or seen.source not in ("kernel", "root") or not isinstance(body, dict):
            raise WireError(f"it says {json.dumps(seen.kind)[:60]} of {json.dumps(seen.source)[:60]}")
        if seen.subject and not _SUBJECT.fullmatch(seen.subject):
            raise WireError("its subject is none")
        self._spool.put(
            seen.kind, seen.source, at=seen.at, severity=seen.severity, subject=seen.subject, body=body
        )  # fmt: skip
