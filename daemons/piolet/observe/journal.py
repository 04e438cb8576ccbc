"""A node's journal of steps that run on it: what the sampler saw, on the node's disk, for the forwarder to take along.

It is a spool of events (decisions 104 and 135) in a directory of its own, `[observe] journal`: lines of JSON as
`piolet.events.envelope` has them, a stream for each user, numbered by epoch and seq without a gap, in files
`uid-1000-EPOCH-FIRST.jsonl`. So `piolet.events.reader.Reader` reads it while it is written, `piolet.events.batch` packs
lines of it, and what was taken is acknowledged by epoch and number in a file of the form of `acknowledged.json`. Lines
are whole or not there; they are synced to the disk once a tick, so a node that dies loses one. What the bounds of the
journal removed before it was acknowledged, or what a full disk did not take, is told in the node's own stream
(`node-EPOCH-FIRST.jsonl`) by `spool.lost` and `spool.dropped`, and that the sampler began anew by `node.start`
(`piolet.events.kinds` says what they have).

A line's envelope says cluster, node, boot, time (seconds since 1970 at the end of the span, by the node's clock), uid,
job and step. A job without a number in its control group has `job` None and its name in the body, as "sluid". Three
kinds are of a step:

    observe.step    it was found, and once an hour again, since older lines may be removed:
                    version (of this form), interval (s), began (when its control group was made, seconds since 1970),
                    found (when the sampler saw it first), up (s since boot), devices (list of GPUs as in META of the
                    layout, each with "by": "process", one of the step has used it, or "alone", no other job is on this
                    node), sources (name -> '' where it tells, else why it does not; "NAME.COLUMN" -> why it never
                    tells that), simulated (the simulator's mark, where figures are its)
    observe.frame   one tick of one step; see below
    observe.end     its control group is gone: up, ended (seconds since 1970: a second early at most)

observe.step and observe.end may have rows of `quality` as well. A step's first two frames come 1 and 3 s after it was
found, of the step's own figures, so that short steps have some; then all steps of the node have theirs together.

Body of a frame:

    {"up": 86412.123, "span": 10.002,
     "host": {"columns": ["cpu", "memory", ...], "rows": [[1.0, 5242880, ...]]},
     "gpu":  {"columns": ["gpu", "uuid", "sm", ...], "rows": [[0, "GPU-...", 0.5, ...], ...]},
     "io":   {"columns": ["mount", "kind", "scope", "read", ...], "rows": [...]},
     "net":  {"columns": ["port", "kind", "rate", "rx", ...], "rows": [...]},
     "quality": {"columns": ["source", "subject", "start", "end", "reason", "values"], "rows": [...]}}

Columns are those of the layout's tables (`piolet.observe.layout`) without time, span and node; `span` is of all tables
of the frame unless a table has a column `span` of its own. null is missing; a table without rows is not there. Start
and end of `quality` are seconds since 1970 by the node's clock. `up` grows whatever is done to that clock: two frames
of one boot are as far apart as it says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from piolet.base.errors import EventError
from piolet.events.envelope import Event, decode
from piolet.events.reader import Reader

STEP, FRAME, END = KINDS = ("observe.step", "observe.frame", "observe.end")
VERSION = 1
ACKNOWLEDGED = "observed.json"
"""In the forwarder's directory: up to which number the central service has all, by epoch."""
TABLES = ("host", "gpu", "io", "net", "quality")

_NAME_MAX = 60

__all__ = ["ACKNOWLEDGED", "END", "FRAME", "KINDS", "STEP", "TABLES", "VERSION", "Line", "Reader", "line_of", "rows_of"]


@dataclass(frozen=True)
class Line:
    """A line that is of a step: the record, and the name that its job has here, the number or the SLUID."""

    event: Event
    job: str

    @property
    def step(self) -> tuple[str, str]:
        """The job and the step, as texts."""
        return self.job, self.event.step


def line_of(line: bytes) -> Line | None:
    """Return what a line of the journal says of a step; None: it is of the node, as spool.lost is.

    Raises EventError: it is no record, or not as a sampler writes it. Every value in `rows_of` still is as JSON had it.
    """
    event = decode(line)
    if event.kind not in KINDS:
        return None
    job = str(event.job) if event.job is not None else event.body.get("sluid")
    if not isinstance(job, str) or not job or len(job) > _NAME_MAX or not event.step or event.uid is None:
        raise EventError("a record of a step does not say of which step")
    return Line(event, job)


def rows_of(frame: Event, table: str) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of a table of a frame, by column. Raises EventError: it is no table."""
    said = frame.body.get(table)
    if said is None:
        return
    columns, rows = (said.get("columns"), said.get("rows")) if isinstance(said, dict) else (None, None)
    if (
        not isinstance(columns, list)
        or not all(isinstance(name, str) for name in columns)
        or not isinstance(rows, list)
    ):
        raise EventError(f"{table} of a frame is no table")
    for row in rows:
        if not isinstance(row, list) or len(row) != len(columns):
            raise EventError(f"a row of {table} of a frame has {len(row) if isinstance(row, list) else 'no'} values")
        yield dict(zip(columns, row, strict=True))
