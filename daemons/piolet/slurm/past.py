"""What Slurm's accounting tells of the past of a whole cluster: jobs that ended, and states that nodes had.

Read from `sacct` and `sacctmgr show event`, or from what a site kept of them in files. It does not say on which node of
a job something went wrong; and what a job's owner can bring about (all but a node's failure) is the owner's word.
"""

from __future__ import annotations

import datetime
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from piolet.base import hostlist
from piolet.base.errors import PioletError, SlurmError
from piolet.base.texts import counted
from piolet.slurm import asking

_log = logging.getLogger("piolet-central")

ASK_S = 60.0
OUTPUT_MAX = 64 << 20
JOB_FIELDS = ("JobIDRaw", "JobID", "UID", "State", "ExitCode", "NodeList", "Submit", "Start", "End")
STATE_FIELDS = ("NodeName", "TimeStart", "TimeEnd", "State", "Reason", "User")
_NEEDED = {
    JOB_FIELDS: (("jobidraw", "jobid"), ("state",), ("nodelist",), ("end",)),
    STATE_FIELDS: (("nodename",), ("timestart", "start"), ("state",)),
}
"""Of each of these one has to be there."""
_CANCELLED = re.compile(r"CANCELLED by (\d{1,10})")
_OVER = re.compile(r"[A-Z_]+")
_PASSED: set[str] = set()
_PASSED_MOST = 100
_NOT_OVER = {"PENDING", "RUNNING", "SUSPENDED", "COMPLETING", "CONFIGURING", "RESIZING", "STAGE_OUT", "SIGNALING"}
_IS_TIME = re.compile(r"\d{9,11}$|\d{4}-\d\d-\d\dT")
_PRIVATE = re.compile(r"^PrivateData\s*=\s*(\S+)", re.MULTILINE)
_SEES_ALL = ("Operator", "Administrator")
_SECONDS = re.compile(r"\d{9,11}")
_REASON_MAX, _REASON_LINES = 1024, 100
# What a node's state counts as: the first of these that is among its words.
_STATES = (
    ("powered_down", ("POWERED_DOWN", "POWERING_DOWN", "POWER_DOWN", "POWERING_UP", "POWERED_UP", "POWER_UP")),
    ("fail", ("FAIL", "FAILING")),
    ("drain", ("DRAIN", "DRAINED", "DRAINING", "DRNG")),
    ("down", ("DOWN",)),
    ("maint", ("MAINT", "RESERVED", "PLANNED", "REBOOT", "REBOOT_ISSUED", "REBOOT_REQUESTED")),
    ("unknown", ("UNKNOWN", "UNK")),
)


@dataclass(frozen=True)
class EndedJob:
    """A run of a job that is over; a requeued job has several, each with a submission of its own.

    array    '112_1' of an array's task, '12+1' of a component of a heterogeneous job, else ''
    uid      its owner's, None: not told
    state    FAILED, NODE_FAIL, TIMEOUT, OUT_OF_MEMORY, CANCELLED, COMPLETED, REQUEUED, …
    status   the exit status; `signal` the signal's number, 0 for none
    submit, start, end   seconds since 1970; `start` is None for one that never ran
    by       the uid whose scancel it was, of one that is CANCELLED; None: not told
    """

    job: int
    array: str
    uid: int | None
    state: str
    status: int
    signal: int
    nodes: tuple[str, ...]
    submit: float
    start: float | None
    end: float
    by: int | None = None


@dataclass(frozen=True)
class NodeState:
    """A state that a node had from `start` to `end` (seconds since 1970; None: it has it).

    state    one word: powered_down, fail, drain, down, maint, unknown, or Slurm's own in small letters
    by       whose command it was, or ''
    """

    node: str
    start: float
    end: float | None
    state: str
    reason: str
    by: str


def jobs(text: str, zone: datetime.tzinfo | None = None) -> list[EndedJob]:
    """Return the jobs in the output of `sacct -P -X`, in order; with a header its columns may be any.

    Times are seconds since 1970, or as Slurm prints them, then in `zone` unless they say their own (None: this
    machine's). Raises SlurmError, with the line.
    """
    return _read(text, JOB_FIELDS, _job, zone)


def states(text: str, zone: datetime.tzinfo | None = None) -> list[NodeState]:
    """Return the nodes' states in the output of `sacctmgr -P show event`, in order; as `jobs`."""
    return _read(text, STATE_FIELDS, _state, zone)


def ask_jobs(since: float, until: float, sacct: str = "sacct") -> list[EndedJob]:
    """Return the runs that ended in that time, and some that ended after; what cannot be read is logged, once.

    Raises SlurmError.
    """
    words = ["-a", "-X", "-n", "-P", "--duplicates", f"--format={','.join(JOB_FIELDS)}"]
    words += [f"--starttime={_local(since)}", f"--endtime={_local(until)}"]
    text = _ask([sacct, *words], "what became of jobs")
    return [job for job in _read(text, JOB_FIELDS, _job, wrong=_passed_over) if job.end >= since]


def ask_states(since: float, sacctmgr: str = "sacctmgr") -> list[NodeState]:
    """Return the states that nodes had since then; as `ask_jobs`. Raises SlurmError."""
    words = ["-n", "-P", "show", "event", f"start={_local(since)}", f"format={','.join(STATE_FIELDS)}"]
    return _read(_ask([sacctmgr, *words], "the states of nodes"), STATE_FIELDS, _state, wrong=_passed_over)


def hidden(account: str, sacctmgr: str = "sacctmgr") -> frozenset[str]:
    """Return what slurmdbd's PrivateData hides from an account, of 'jobs' and 'events'. Raises SlurmError."""
    shown = _ask([sacctmgr, "show", "configuration"], "what it hides")
    private = _PRIVATE.search(shown.partition("SlurmDBD configuration:")[2])  # above it is slurm.conf's
    words = set(private[1].lower().split(",")) & {"jobs", "events"} if private else set()
    if not words:
        return frozenset()
    level = _ask([sacctmgr, "-n", "-P", "show", "user", f"name={account}", "format=AdminLevel"], "an account's level")
    return frozenset() if level.strip() in _SEES_ALL else frozenset(words)


_Row = tuple[int, dict[str, str]]
_Made = TypeVar("_Made")


def _read(
    text: str, fields: tuple[str, ...], make: Callable[[_Row, datetime.tzinfo | None], _Made | None],
    zone: datetime.tzinfo | None = None, wrong: Callable[[SlurmError], None] | None = None,
) -> list[_Made]:  # fmt: skip
    """Return what is made of each row; `wrong` is told of those of which nothing can be, else that is raised."""
    found = []
    _whole(text.partition("\n")[0], fields)
    for row in _rows(text, fields):
        try:
            if isinstance(row, SlurmError):
                raise row
            made = make(row, zone)
        except SlurmError as error:
            if wrong is None:
                raise
            wrong(error)
        else:
            found += [made] if made is not None else []
    return found


def _passed_over(error: SlurmError) -> None:
    """Say once that a row was left out: it stays in the accounting, and may not keep away what comes after it."""
    said = error.message.partition(" of Slurm's accounting ")[2]
    if said not in _PASSED and len(_PASSED) < _PASSED_MOST:
        _PASSED.add(said)
        _log.warning("a row of Slurm's accounting is passed over: it %s", said)


def _rows(text: str, fields: Sequence[str]) -> Iterator[_Row | SlurmError]:
    """Yield (line number, column -> value), or what is wrong; a first line that names columns is the header."""
    lines = list(enumerate((line.removesuffix("\r") for line in text.split("\n")), 1))
    header = _header(lines[0][1])
    names = header or [name.lower() for name in fields]
    row: list[str] = []  # its lines: a reason may have several
    first = 0
    for number, line in lines[1 if header else 0 :]:
        if not line.strip("|"):
            continue
        if row and _goes_on(line, names) and len(row) < _REASON_LINES:
            row.append(line)
            continue
        if row:
            yield _row(first, " ".join(row).split("|"), names)
        row, first = [line], number
    if row:
        yield _row(first, " ".join(row).split("|"), names)


def _goes_on(line: str, names: Sequence[str]) -> bool:
    """Return whether a line is more of the reason of a node's state, which has no time where a row has one."""
    if "reason" not in names:
        return False
    at = names.index("timestart" if "timestart" in names else "start")
    words = line.split("|", at + 1)
    return len(words) <= at or _IS_TIME.match(words[at]) is None


def _row(number: int, words: list[str], names: Sequence[str]) -> _Row | SlurmError:
    if len(words) < len(names):
        return _cut(number, words, names)
    # A reason may have the separator in it: it is the last but one of ours, and of most.
    if len(words) > len(names) and "reason" in names:
        at, more = names.index("reason"), len(words) - len(names)
        words[at : at + more + 1] = ["|".join(words[at : at + more + 1])]
    return number, dict(zip(names, words, strict=False))


def _header(line: str) -> list[str]:
    """Return the columns that a first line names, in small letters; none where it is a row."""
    words = line.removesuffix("\r").lower().split("|")
    return words if {"nodename", "jobid", "jobidraw", "nodelist"} & set(words) else []


def _whole(line: str, fields: tuple[str, ...]) -> None:
    """Raise SlurmError if the first line names columns, and not those without which nothing can be read."""
    names = _header(line)
    for wanted in _NEEDED[fields] if names else ():
        if not set(wanted) & set(names):
            raise SlurmError(
                f"line 1 of Slurm's accounting names no column {wanted[0]!r}", f"it is to have: {', '.join(fields)}"
            )


def _cut(number: int, words: Sequence[str], names: Sequence[str]) -> SlurmError:
    return SlurmError(
        f"line {number} of Slurm's accounting has {counted(len(words), 'column')}, not {len(names)}",
        "it is to be the output of sacct -P or sacctmgr -P, whole",
    )


def _job(numbered: _Row, zone: datetime.tzinfo | None) -> EndedJob | None:
    number, row = numbered
    shown = row.get("jobid", "") or row.get("jobidraw", "")
    raw = row.get("jobidraw", "") or shown
    state = _OVER.match(row.get("state", ""))
    if "." in raw or state is None or state[0] in _NOT_OVER:
        return None
    end = _time(row, "end", number, zone)
    if end is None:
        return None
    status, _, signal = row.get("exitcode", "").partition(":")
    nodes = row.get("nodelist", "")
    try:
        return EndedJob(
            int(re.split(r"[_+]", raw)[0]), shown if re.search(r"[_+]", shown) else "",
            int(row["uid"]) if row.get("uid") else None, state[0], int(status or 0), int(signal or 0),
            () if nodes in ("", "None assigned") else tuple(hostlist.expand(nodes)),
            _time(row, "submit", number, zone) or end, _time(row, "start", number, zone), end,
            int(by[1]) if (by := _CANCELLED.fullmatch(row["state"])) else None,
        )  # fmt: skip
    except (ValueError, PioletError):
        raise SlurmError(f"line {number} of Slurm's accounting does not describe a job: {shown[:40]!r}") from None


def _state(numbered: _Row, zone: datetime.tzinfo | None) -> NodeState | None:
    number, row = numbered
    start = _time(row, "timestart" if "timestart" in row else "start", number, zone)
    if not row.get("nodename") or start is None:  # an event of the cluster as such
        return None
    end = _time(row, "timeend" if "timeend" in row else "end", number, zone)
    reason = "".join(letter if letter.isprintable() else "?" for letter in row.get("reason", ""))[:_REASON_MAX]
    by = row.get("user", "").partition("(")[0]
    return NodeState(row["nodename"], start, end, state_word(row.get("state", "")), reason, by)


def state_word(text: str) -> str:
    """Return the one word that a node's state counts as: 'IDLE+DRAIN*' is drain."""
    words = [word.rstrip("*~#!%$@^-") for word in text.upper().split("+")]
    for name, ours in _STATES:
        if any(word in ours for word in words):
            return name
    return words[0].lower()[:32] or "unknown"


def _time(row: Mapping[str, str], name: str, line: int, zone: datetime.tzinfo | None) -> float | None:
    text = row.get(name, "")
    if text in ("", "Unknown", "None", "N/A"):
        return None
    if _SECONDS.fullmatch(text):
        return float(text)
    try:
        when = datetime.datetime.fromisoformat(text)
        return (when if when.tzinfo else when.replace(tzinfo=zone) if zone else when.astimezone()).timestamp()
    except (ValueError, OverflowError, OSError):
        raise SlurmError(f"line {line} of Slurm's accounting has {text[:40]!r} as time '{name}'") from None


def _local(when: float) -> str:
    """Return a time as Slurm's commands take it: of this machine's zone, without its name."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(when))


def _ask(command: Sequence[str], what: str) -> str:
    """Return what a command prints. Raises SlurmError."""
    good, out, err = asking.ask(command, what, "%s", ASK_S, OUTPUT_MAX)
    if not good:
        said = err.strip().splitlines()[-1:] or ["nothing was said"]
        raise SlurmError(f"{command[0]} did not tell {what}: {said[0][:200]}", "see: sacctmgr show cluster")
    return out
