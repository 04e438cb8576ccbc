"""One record of something that happened: the envelope that every event is in, from a node's disk to the central store.

A record is one line of JSON, ASCII, at most LINE_MAX bytes, with the fields of `Event` as keys; what is None or empty
is left out. `(node, epoch, seq)` is a record's key: `seq` counts up by one within an epoch, which is drawn anew where a
node's spool was lost. So whoever has all records up to one knows what is missing.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from piolet.base.errors import EventError

VERSION = 1
"""Goes up where a release before would take a record for what it is not. What it only does not know, it keeps: a field
(`Event.more`), a kind, a key of a body."""
LINE_MAX = 16 * 1024
BODY_DEPTH_MAX = 8

KERNEL, ROOT, SITE, USER = SOURCES = ("kernel", "root", "site", "user")
"""Who could have made it come true. What a user's process says or does (a verdict, an exit status) is the user's,
whoever carries it."""
FATAL, WARN, INFO = SEVERITIES = ("fatal", "warn", "info")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,254}")
_KIND = re.compile(r"[a-z][a-z0-9_]{0,31}\.[a-z][a-z0-9_]{0,31}")
_HEX = re.compile(r"[0-9a-f]{16}")
_BOOT = re.compile(r"[0-9a-f-]{32,36}")
_STEP = re.compile(r"[a-z0-9+]{1,60}")
_SUBJECT_MAX = 256
_LATER = re.compile(r"[a-z][a-z0-9_]{0,31}")
_INTEGER_MAX = 2**63 - 1
_UID_MAX = 2**32 - 2


@dataclasses.dataclass(frozen=True)
class Event:
    """One event.

    cluster   Slurm's ClusterName
    node      Slurm's NodeName, as the daemon of that node knows it, or as the central service has it from Slurm
    boot      the kernel's boot id, '' where no node said it
    epoch     16 hexadecimal digits, drawn when the spool that numbered the record was made
    seq       the record's number in that spool, from 1
    time      seconds since 1970 by the clock of whoever wrote it
    kind      'subject.what', one of piolet.events.kinds
    source    who could have made it come true: one of SOURCES
    severity  what the tables of severities say of it: one of SEVERITIES, or '' where none of them speaks of it
    offset    how far that clock was ahead of the central service's, in seconds; None: not measured
    job       Slurm's job number, None: of no job
    step      '0', 'batch', 'extern', 'interactive', or '0+1' of a heterogeneous one; '' of no step
    run       how often the job was requeued before; None: not known
    uid       whose process or job it is; None: nobody's
    subject   the part of the node that it is of: 'gpu:UUID', 'port:mlx5_0/1', 'fs:/scratch'; '': the node as such
    body      what else there is to say; keys by kind
    more      fields of a later release, as they came; on a line they are fields like the others
    """

    cluster: str
    node: str
    epoch: str
    seq: int
    time: float
    kind: str
    source: str
    boot: str = ""
    severity: str = ""
    offset: float | None = None
    job: int | None = None
    step: str = ""
    run: int | None = None
    uid: int | None = None
    subject: str = ""
    body: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    version: int = VERSION
    more: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, int]:
        """What tells this record from every other of its cluster."""
        return self.node, self.epoch, self.seq


class LaterError(EventError):
    """A record is of a later release, which says that this one would not understand it: it has to stay where it is."""


UNNUMBERED = "0" * 16, _INTEGER_MAX
"""Epoch and number of an event whose spool numbers it when it writes it: as long as the longest."""
_UNNUMBERED = b'"epoch":"%s","seq":%d' % (UNNUMBERED[0].encode(), UNNUMBERED[1])
# The fields stand as they are defined, and neither name before these two can have a quote in it.
_NUMBER = re.compile(rb'\{"cluster":"[^"]{1,255}","node":"[^"]{1,255}","epoch":"([0-9a-f]{16})","seq":(\d{1,19}),')

_FIELDS = {field.name: field for field in dataclasses.fields(Event) if field.name != "more"}
_NEEDED = [name for name, field in _FIELDS.items() if field.default is field.default_factory is dataclasses.MISSING]


def encode(event: Event) -> bytes:
    """Return the record's line, with its newline. Raises EventError where it is none, or longer than LINE_MAX."""
    fields = {name: getattr(event, name) for name in _FIELDS}
    said = {name: value for name, value in fields.items() if value is not None and value != "" and value != {}}
    said |= event.more
    try:
        line = json.dumps(said, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"
    except (ValueError, TypeError, RecursionError):
        raise EventError(f"an event of {event.kind} has a body that is no JSON") from None
    if len(line) > LINE_MAX:
        raise EventError(f"an event of {event.kind} is {len(line)} bytes long, more than the limit of {LINE_MAX}")
    _check(said)
    return line


def decode(line: bytes) -> Event:
    """Return the event in a line, newline or not. Raises EventError for what `encode` would not have written."""
    if len(line) > LINE_MAX:
        raise EventError(f"a record is {len(line)} bytes long, more than the limit of {LINE_MAX}")
    try:
        said = json.loads(line, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise EventError("a record is no JSON") from None
    if not isinstance(said, dict):
        raise EventError("a record is no object")
    _check(said)
    more = {name: said.pop(name) for name in said.keys() - _FIELDS.keys()}
    return Event(**said, more=dict(sorted(more.items())))


def numbered(line: bytes, epoch: str, seq: int) -> bytes:
    """Return the line of `encode` for an event of UNNUMBERED, with its epoch and its number."""
    return line.replace(_UNNUMBERED, b'"epoch":"%s","seq":%d' % (epoch.encode(), seq), 1)


def number_of(line: bytes) -> tuple[str, int] | None:
    """Return epoch and number of a line that `encode` wrote, without decoding it; None of any other."""
    match = _NUMBER.match(line)
    return None if match is None else (match[1].decode(), int(match[2]))


def _no_number(text: str) -> float:
    raise ValueError(text)


def _check(said: Mapping[str, Any]) -> None:
    version = said.get("version", VERSION)
    if type(version) is int and version > VERSION:
        raise LaterError(
            f"a record is of version {version}, and this release of Piolet knows those up to {VERSION}",
            "the central service is upgraded before nodes are, and daemons of a node are restarted together",
        )
    missing = [name for name in _NEEDED if name not in said]
    if missing:
        raise EventError(f"a record has no field {missing[0]!r}")
    for name, value in said.items():
        if not _RIGHT.get(name, _later)(value) or (name not in _FIELDS and not _LATER.fullmatch(name)):
            raise EventError(f"a record's field {name[:60]!r} is {str(value)[:60]!r}")


def _later(value: object) -> bool:
    """Return whether a field of a later release can be kept as it is."""
    return value is not None and value not in ("", {}) and _depth(value, BODY_DEPTH_MAX)


def _matches(pattern: re.Pattern[str]) -> Any:
    return lambda value: isinstance(value, str) and pattern.fullmatch(value) is not None


def _one_of(words: tuple[str, ...]) -> Any:
    return lambda value: isinstance(value, str) and value in words


def _integer(least: int, most: int) -> Any:
    return lambda value: type(value) is int and least <= value <= most


def _number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and abs(value) < 1e12  # type: ignore[arg-type]


def _depth(value: object, left: int) -> bool:
    if isinstance(value, dict):
        return left > 0 and all(_depth(one, left - 1) for one in value.values())
    if isinstance(value, list):
        return left > 0 and all(_depth(one, left - 1) for one in value)
    return type(value) is not int or abs(value) <= _INTEGER_MAX


_RIGHT = {
    "cluster": _matches(_NAME),
    "node": _matches(_NAME),
    "epoch": _matches(_HEX),
    "seq": _integer(1, _INTEGER_MAX),
    "time": _number,
    "kind": _matches(_KIND),
    "source": _one_of(SOURCES),
    "boot": _matches(_BOOT),
    "severity": _one_of(SEVERITIES),
    "offset": _number,
    "job": _integer(1, 2**32 - 1),
    "step": _matches(_STEP),
    "run": _integer(0, 2**31 - 1),
    "uid": _integer(0, _UID_MAX),
    "subject": lambda value: isinstance(value, str) and 0 < len(value) <= _SUBJECT_MAX and value.isprintable(),
    "body": lambda value: isinstance(value, dict) and _depth(value, BODY_DEPTH_MAX),
    "version": _integer(VERSION, VERSION),
}
