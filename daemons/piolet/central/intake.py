"""Makes of a node's batch what the store is to keep: decodes its records, and says why one is not kept."""

from __future__ import annotations

import re
from collections.abc import Sequence

from piolet.base.errors import EventError
from piolet.central import accounted, hands
from piolet.central.store.writer import Arrival, Refused
from piolet.events import batch
from piolet.events.envelope import SITE, Event, decode
from piolet.events.kinds import KINDS
from piolet.transport.statements import Statement

_GONE = re.compile(r"([0-9a-f]{16}):([0-9]{1,19})")
_GONE_MOST = 500
_OFFSETS_MOST = 1e9


def arrival(statement: Statement, body: bytes, gone: str, received: float) -> Arrival:
    """Return what is to be kept of a batch.

    gone      what its node has no more, as `EPOCH:SEQ,EPOCH:SEQ`: numbers up to which there is nothing
    received  when it came, by the service's clock

    Raises EventError: it is no batch, or has a line that is no record, or of another node; nothing of it is kept then.
    """
    records: list[Event | Refused] = []
    for number, line in enumerate(batch.unpack(body) if body else [], 1):
        try:
            event = decode(line)
        except EventError as error:
            raise EventError(f"line {number}: {error.message}", error.hint) from None
        if (event.cluster, event.node) != (statement.cluster, statement.node):
            raise EventError(f"line {number}: the record is of node {event.node} of {event.cluster}")
        why = _refused(event)
        records.append(Refused(event.epoch, event.seq, why) if why else event)
    ahead = statement.sent - received
    return Arrival(
        statement.node, records, received, gone_of(gone), ahead if abs(ahead) < _OFFSETS_MOST else None
    )  # fmt: skip


def _refused(event: Event) -> str:
    """Return why a record of a node is not kept, or ''."""
    if event.epoch in accounted.EPOCHS or event.epoch == hands.EPOCH:
        return f"the epoch {event.epoch} is the central service's own"
    kind = KINDS.get(event.kind)
    if kind is None:
        # A later release's, or nobody's: it is kept, and no rule sees it. A node still does not speak for the site.
        return f"a node does not speak for the site: {event.kind}" if event.source == SITE else ""
    if event.source not in kind.sources:
        return f"{event.kind} is not of the source {event.source}"
    if event.source == SITE or event.kind.startswith("slurm."):
        return f"a node does not speak for the site: {event.kind}"
    return ""


def gone_of(text: str) -> dict[str, int]:
    """Return what a request says that its node has no more: epoch -> number. Raises EventError."""
    words: Sequence[str] = text.split(",") if text else ()
    found = {}
    for word in words:
        match = _GONE.fullmatch(word)
        if match is None or int(match[2]) > 2**63 - 1 or len(words) > _GONE_MOST:
            raise EventError("the request does not say what is gone as EPOCH:SEQ")
        found[match[1]] = int(match[2])
    return found
