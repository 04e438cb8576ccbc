"""What happened to a step and on its nodes, as the store has it: the table `events` of the step's data.

A step's data are read by its user and by staff, so no record of another user's is among them, whoever could see that:
records of the user's own job, and those of its nodes that are nobody's. Each row keeps its source. What users can bring
about says so (`user`), and is a hint to whoever draws conclusions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from piolet.base.errors import EventError
from piolet.central import conclusions
from piolet.central.conclusions import CLOSED, NOTE, OPEN, Conclusion
from piolet.central.store.reader import Reader
from piolet.central.store.rows import Stored
from piolet.events.envelope import FATAL, SITE, USER, WARN, Event
from piolet.observe import happened
from piolet.observe.catalogue import Row
from piolet.observe.joining import Told
from piolet.steps import identity

NODES_MOST, OF_NODE_MOST, ROWS_MOST, CASES_MOST = 4096, 5_000, 20_000, 20
BEFORE_S, AFTER_S = 5.0, 300.0  # of a step: a node's fault may be told after it
VETTED_S = 3600.0  # so long before a step its nodes were vetted for it
CASE = "site.case"
"""Kind of a row that is no record: what a rule concludes of a node whose case was open when the step ran."""
STARTED = "slurm.job_start"
"""Kind of a row that is no record either: when a run of the job began."""
_WORDS = {FATAL: "error", WARN: "warning"}
_STATES = {"NODE_FAIL": "error", "down": "error", "fail": "error", "drain": "warning", "TIMEOUT": "warning",
           "OUT_OF_MEMORY": "warning", "FAILED": "warning"}  # fmt: skip
_BODY_MOST = 2_000


class StepEvents:
    """Asks the store, which `connect` opens when it is asked for the first time, and again where that failed."""

    def __init__(self, connect: Callable[[], Reader]) -> None:
        self._connect = connect
        self._reader: Reader | None = None

    def __call__(self, row: Row, nodes: Sequence[str], begin: float, end: float) -> Told:
        """Return what happened from `begin` to `end` (s since 1970); where the store cannot be read that is said."""
        try:
            if self._reader is None:
                self._reader = self._connect()
            return _told(self._reader, row, nodes, begin, end)
        except EventError as error:
            return Told(None, [error.message])


def _told(reader: Reader, row: Row, nodes: Sequence[str], begin: float, end: float) -> Told:
    left = []
    if len(nodes) > NODES_MOST:
        left.append(f"of {NODES_MOST} of {len(nodes)} nodes only")
    found: list[dict[str, Any]] = []
    for node in nodes[:NODES_MOST]:
        records = reader.of_node(node, begin - VETTED_S, end + AFTER_S, OF_NODE_MOST)
        if len(records) >= OF_NODE_MOST:
            left.append(f"of {node} the last {OF_NODE_MOST} records only")
        own = [one for one in records if _concerns(one, row, begin, end)]
        found += [_row(one) for one in own] + [start for one in own if (start := _start(one)) is not None]
        found += _cases(reader, node, begin, end)
    found.sort(key=lambda one: (one["severity"] == "info", one["time"]))
    if len(found) > ROWS_MOST:
        left.append(f"{len(found) - ROWS_MOST} of {len(found)} are left out")
    kept = sorted(found[:ROWS_MOST], key=lambda one: one["time"])
    names = ("time", "node", "subject", "kind", "source", "severity", "text", "body")
    return Told({name: [one[name] for one in kept] for name in names}, left)


def _concerns(one: Stored, row: Row, begin: float, end: float) -> bool:
    """Return whether a record is of the step, or of its node while it ran and of no user's."""
    event = one.event
    if event.uid not in (None, row.uid) or event.kind in ("node.heartbeat", "node.start"):
        return False
    of_job = event.job is not None and str(event.job) == row.job
    of_job |= event.source == USER and event.body.get("claimed") is not None and str(event.body["claimed"]) == row.job
    if event.kind.startswith("vet."):
        return of_job
    if one.at < begin - BEFORE_S:
        return False
    if event.job is None and event.source != USER:
        return True
    return of_job and (not event.step or identity.is_of(event.step, row.step)) and event.run in (None, row.run)


def _row(one: Stored) -> dict[str, Any]:
    event = one.event
    return {
        "time": _ns(one.at), "node": None if event.kind == "slurm.job_end" else event.node,
        "subject": event.subject or None, "kind": event.kind, "source": event.source, "severity": _severity(event),
        "text": _words(event), "body": _body(event.body),
    }  # fmt: skip


def _start(one: Stored) -> dict[str, Any] | None:
    """Return the row of a run's start, of which Slurm's accounting tells when the run has ended; None: of no run."""
    began = one.event.body.get("start")
    if one.event.kind != "slurm.job_end" or not isinstance(began, int | float) or not 1 < began < one.at:
        return None
    return {
        "time": _ns(began), "node": None, "subject": None, "kind": STARTED, "source": SITE, "severity": "info",
        "text": f"started on {one.event.body.get('nodes', one.event.node)}"[:300], "body": None,
    }  # fmt: skip


def _words(event: Event) -> str:
    if event.kind == "vet.verdict":
        said = event.body.get("reason") or ", ".join(
            f"{event.body[key]} {event.body.get('unit', '')}".strip() for key in ("value",) if key in event.body
        )
        return f"{event.body.get('eval', '?')}: {event.body.get('state', '?')}{f' ({said})' if said else ''}"[:300]
    return happened.words(event.kind, event.body)


def _severity(event: Event) -> str:
    if event.severity:
        return _WORDS.get(event.severity, "info")
    state = event.body.get("state")
    if event.kind == "vet.verdict":
        return {"fail": "error", "warn": "warning"}.get(str(state), "info")
    if event.kind == "step.outcome":
        return "warning" if event.body.get("signal") or event.body.get("status") else "info"
    return _STATES.get(state, "info") if isinstance(state, str) else "info"


def _body(body: Mapping[str, Any]) -> str | None:
    text = json.dumps(dict(body), separators=(",", ":"), sort_keys=True)
    return text if body and len(text) <= _BODY_MOST else None


def _cases(reader: Reader, node: str, begin: float, end: float) -> Iterator[dict[str, Any]]:
    """Yield the node's cases that were open while the step ran, and rest on nobody's doing."""
    found = [conclusions.decode(line) for line in reader.conclusions(node)]
    closed = {one.case: one.time for one in found if one.state == CLOSED}
    open_then = [
        one for one in found
        if one.state == OPEN and one.time <= end + AFTER_S and closed.get(one.case, begin) >= begin
    ]  # fmt: skip
    for one in open_then[-CASES_MOST:]:
        if _is_nobodys(reader, one):
            yield {
                "time": _ns(one.time), "node": node, "subject": one.subject or None, "kind": CASE, "source": SITE,
                "severity": "info" if one.action == NOTE else "warning", "text": one.sentence[:300],
                "body": _body({"case": one.case, "rule": one.rule, "action": one.action}),
            }  # fmt: skip


def _is_nobodys(reader: Reader, one: Conclusion) -> bool:
    records = [reader.record(*key) for key in one.records]
    return all(record is not None and record.source != USER and record.uid is None for record in records)


def _ns(seconds: float) -> int:
    return round(seconds * 1e6) * 1000
