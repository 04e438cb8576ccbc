"""Events of what Slurm's accounting tells, with keys made of what they are of: whoever asks again gets the same ones.

An epoch of their own stands for each kind, and their numbers have gaps; so no node may send records of these epochs.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from itertools import zip_longest

from piolet.base import hostlist
from piolet.events.envelope import SITE, USER, Event
from piolet.slurm.past import EndedJob, NodeState


def _epoch(kind: str) -> str:
    return hashlib.sha256(f"piolet-central {kind}".encode()).hexdigest()[:16]


JOBS, STATES = _epoch("slurm.job_end"), _epoch("slurm.node_state")
EPOCHS = frozenset({JOBS, STATES})
"""The epochs of the service's own records."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,254}")
_NODES_MAX = 8192


def events_of_jobs(rows: Iterable[EndedJob], cluster: str) -> Iterator[Event]:
    """Yield one event for each run that had nodes; its node is the first of them.

    Its number is the job's and the second of its submission, as a requeued job is submitted again.
    """
    for row in rows:
        if not row.nodes or not 0 < row.job < 2**26 or not _NAME.fullmatch(row.nodes[0]):
            continue
        body: dict[str, object] = {"state": row.state, "status": row.status, "signal": row.signal}
        body["nodes"] = _compressed(row.nodes)
        if row.by is not None:
            body["by"] = row.by
        if row.array:
            body["array"] = row.array
        if row.start is not None:
            body["start"] = row.start
        yield Event(
            cluster, row.nodes[0], JOBS, row.job << 32 | int(row.submit) & 0xFFFFFFFF, row.end, "slurm.job_end",
            SITE if row.state == "NODE_FAIL" else USER, job=row.job, uid=row.uid, body=body,
        )  # fmt: skip


def events_of_states(rows: Iterable[NodeState], cluster: str) -> Iterator[Event]:
    """Yield an event for each state that begins, and 'resume' where one ends and no other follows at once."""
    of_node: dict[str, list[NodeState]] = {}
    for row in rows:
        if _NAME.fullmatch(row.node) and 0 < row.start != row.end:
            of_node.setdefault(row.node, []).append(row)
    for node, found in of_node.items():
        found.sort(key=lambda row: (row.start, row.end is None, row.end or 0.0))
        for row, then in zip_longest(found, found[1:]):
            yield _state(cluster, node, row.start, row.state, row.reason, row.by)
            if row.end is not None and (then is None or then.start > row.end):
                yield _state(cluster, node, row.end, "resume", row.reason, "")


def _state(cluster: str, node: str, when: float, state: str, reason: str, by: str) -> Event:
    mark = int.from_bytes(hashlib.sha256(state.encode()).digest()[:2], "big")
    body = {"state": state, **({"reason": reason} if reason else {}), **({"by": by} if by else {})}
    return Event(cluster, node, STATES, int(when) << 16 | mark or 1, when, "slurm.node_state", SITE, body=body)


def _compressed(nodes: tuple[str, ...]) -> str:
    """Return the host list; of one that is too long its beginning, which is not that of one node either."""
    text = hostlist.compress(nodes)
    return text if len(text) <= _NODES_MAX else f"{nodes[0]},{nodes[1]},… ({len(nodes)} nodes)"
