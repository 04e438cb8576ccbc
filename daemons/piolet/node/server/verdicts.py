"""What vettings say, as events (decisions 66 and 119): who it was is the kernel's word and root's, the rest the user's.

A line of a vetting is {"origin", "kind", "plan", "protocol", "release", "said"}, or {"refused": why it could not be
done}. Whatever it says stays in the event's body: nothing of it says whose it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from piolet.events import cut
from piolet.events.envelope import BODY_DEPTH_MAX, ROOT, USER
from piolet.events.kinds import KINDS
from piolet.events.spool import Spool
from piolet.node.server.past import Past

LINE_MAX = 16 * 1024
ORIGINS = ("built-in", "site", "user")
_BODY_MAX = 12 * 1024
_KEYS = {"origin", "kind", "plan", "protocol", "release", "said"}
_NAMES = ("kind", "plan", "protocol", "release")
_SUBJECT = re.compile(r"(?:gpu|port|fs|nic):[\x21-\x7e]{1,200}")
_REASON_MAX = 1000
_DECIDED = KINDS["vet.decision"].body.keys() - {"pid", "found", "sluid"}


@dataclass(frozen=True)
class Who:
    """Whose vetting it is: what the kernel says of the connection, and what root found of its job and step.

    found   what says so: 'cgroup', 'slurmstepd', or 'unknown', and then there is neither job nor step
    """

    uid: int
    pid: int
    job: str | None = None
    step: str | None = None
    found: str = "unknown"


class Verdicts:
    """Puts what vettings say into the spool, and what counts of it into the node's first values."""

    def __init__(self, spool: Spool, past: Past) -> None:
        self._spool = spool
        self._past = past

    def put(self, who: Who, line: bytes) -> None:
        """Take a line of a user's vetting. Never waits. One that is none becomes a record that says so."""
        content = _content(line)
        if "refused" in content:
            self._put(who, "vet.refused", {"reason": _text(content["refused"], _REASON_MAX), "by": USER})
            return
        subject, body = _body(content)
        if self._put(who, "vet.verdict", body, subject):
            self._past.take(who.uid, content)

    def decide(self, who: Who, text: str) -> None:
        """Take what an srun says that it made of a vetting. What is none of that is not kept."""
        try:
            said = json.loads(text)
            json.dumps(said, allow_nan=False)
        except (ValueError, RecursionError):
            return
        if isinstance(said, dict) and said.keys() <= _DECIDED:
            self._put(who, "vet.decision", _within(cut.plain(said, BODY_DEPTH_MAX)))

    def refuse(self, who: Who, reason: str) -> None:
        """Say that root's processes could not do the vetting: a user can bring that about, too."""
        self._put(who, "vet.refused", {"reason": _text(reason, _REASON_MAX), "by": ROOT})

    def drop(self, uid: int, lines: int, size: int) -> None:
        """Count what of a user's is not spooled."""
        self._spool.drop(uid, lines, size)

    def _put(self, who: Who, kind: str, body: dict[str, Any], subject: str = "") -> bool:
        job, step, more = _place(who)
        body = {**body, **more, "pid": who.pid, "found": who.found}
        return self._spool.put(kind, USER, job=job, step=step, uid=who.uid, subject=subject, body=body)


def _place(who: Who) -> tuple[int | None, str, dict[str, str]]:
    """Return job and step as records have them; a job that has no number is told by its name."""
    if who.job is None:
        return None, "", {}
    step = (who.step or "").lower()
    if who.job.isdecimal() and 0 < int(who.job) < 2**32:
        return int(who.job), step, {}
    return None, step, {"sluid": who.job}


def _content(line: bytes) -> Mapping[str, Any]:
    """Return what the line says, in the fields that it may fill; a line that is none is told as such."""
    nothing = {"origin": "user", **dict.fromkeys(_NAMES)}
    if len(line) > LINE_MAX:
        return {**nothing, "said": {"left out": f"{len(line)} bytes"}}
    try:
        value = json.loads(line)
        json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError):  # an infinity is no JSON for others
        value = None
    if isinstance(value, dict) and value.keys() == {"refused"} and isinstance(value["refused"], str):
        return value
    if (
        isinstance(value, dict)
        and value.keys() == _KEYS
        and value["origin"] in ORIGINS
        and all(value[name] is None or _is_name(value[name]) for name in _NAMES)
        and isinstance(value["said"], dict)
    ):
        return value
    return {**nothing, "said": {"unreadable": f"{len(line)} bytes"}}


def _body(content: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the subject and the body of a verdict's event."""
    said = dict(content["said"])
    subject = said.pop("subject", "")
    outcome, reason = said.pop("outcome", None), said.pop("reason", "")
    body = {
        "eval": _text(said.pop("eval", ""), 200),
        "code": content["kind"],
        "release": content["release"],
        "origin": content["origin"],
        "plan": content["plan"],
        "protocol": content["protocol"],
        "state": "warn" if outcome == "pass" and reason else _text(outcome, 20),
        "judge": _text(said.pop("judge", ""), 20),
        "value": _number(said.pop("value", None)),
        "limit": _number(said.pop("limit", None)),
        "unit": _text(said.pop("unit", ""), 40),
        "serial": _text(said.pop("serial", ""), 60),
        "reason": _text(reason, _REASON_MAX),
    }
    body = {name: value for name, value in body.items() if value is not None and value != ""}
    said = {name: value for name, value in said.items() if value is not None and value != "" and value != {}}
    if said:
        body["said"] = cut.plain(said, BODY_DEPTH_MAX - 1)
    return subject if isinstance(subject, str) and _SUBJECT.fullmatch(subject) else "", _within(body)


def _within(body: dict[str, Any]) -> dict[str, Any]:
    try:
        return cut.within(body, _BODY_MAX)
    except ValueError:
        return {"said": f"(cut, {len(body)} fields)"}


def _text(value: object, most: int) -> str:
    text = value if isinstance(value, str) else ""
    return text if len(text) <= most else f"{text[:most]}… (cut, {len(text)} characters)"


def _number(value: object) -> float | None:
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if known and abs(value) < 1e300 else None  # type: ignore[arg-type]


def _is_name(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 256 and value.isprintable()
