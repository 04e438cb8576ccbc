"""Files of rules: TOML, one table a rule, read strictly, with the place of each fault.

A rule says which events it counts (`events`, `where`), of what (`per`), how far back (`window`), when it is so
(`when`), what would be done (`then`), what ends it (`recovery`), and who says that this is right (`source`, `date`).
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import re
import tomllib
from typing import Any

from piolet.base import places, units
from piolet.base.errors import Location, RuleError
from piolet.base.nearest import nearest
from piolet.base.positions import scan
from piolet.central.conclusions import ACTIONS
from piolet.central.rules import trust
from piolet.central.rules.conditions import Condition, ConditionError, compiled
from piolet.events.kinds import KINDS

SIZE_MAX, RULES_MAX, KEEP_MAX, ALONE_MAX = 1 << 20, 200, 256, 60
LIFETIME = float("inf")
VALUES = ("count", "episodes", "users", "jobs", "subjects", "lifetime", "since_repair", "age", "worked", "last")
"""What `when` may speak of: bursts in the window; the episodes that they are of, as `apart` has it; the users, jobs and
subjects that they are of; all bursts ever; those since the last repair; hours since the node was first heard of; hours
of these in which it was in service and bursts count; hours since the burst before."""
FIELDS = ("kind", "source", "severity", "subject", "uid", "job", "step", "run")
"""What `where` may speak of besides the keys of the events' bodies."""
REPAIR, REVETTED, BOOT, RESUME, HEARD, PERSON, QUIET = RECOVERIES = (
    "repair", "revet", "boot", "resume", "heard", "ack", "quiet",
)  # fmt: skip
_KEYS: dict[str, type] = {
    "about": str, "source": str, "date": datetime.date, "events": list, "where": str, "per": list, "window": str,
    "burst": str, "apart": str, "alone": int, "together": str, "settle": str, "missing": str, "when": str, "then": str,
    "recovery": list,
}  # fmt: skip
_NEEDED = ("about", "source", "date", "events", "window", "when", "then", "recovery")
_AN_EPISODE = 16  # bursts that are kept of each: so long a train pushes out no other
_NAME = re.compile(r"[a-z][a-z0-9-]{0,40}")
_AT = re.compile(r" \(at line (\d+), column (\d+)\)$")


@dataclasses.dataclass(frozen=True, eq=False)
class Rule:
    """A rule.

    name, about, source, date   what it is called, what it sees in words, who says so, when that was looked up
    events, where               the kinds that it counts, and which of them; where None: all
    per       what is counted apart on a node: 'subject' and keys of the body; an event without one is not counted
    window    seconds, or LIFETIME
    burst     events of one job, or of none on one subject, within so many seconds of the first count once
    apart     seconds of work without any of its events that end an episode; 0: it has no episodes
    alone     what befell more nodes than this in one `burst` is not counted: it is not the node's; 0: no bound
    together  seconds within which no other node had an event of the same kind, or it is not counted; 0: no bound
    settle    seconds after an event before it is judged, so that the others' words are there
    missing   seconds without any of its events after which their absence is what is counted; 0: they are
    when      the condition
    then      what would be done
    recovery  what closes a case; quiet: seconds without such an event after which it closes, None: never
    keep      so many bursts are kept for each `per`
    digest    of all of it
    """

    name: str
    about: str
    source: str
    date: str
    events: tuple[str, ...]
    where: Condition | None
    per: tuple[str, ...]
    window: float
    burst: float
    apart: float
    alone: int
    together: float
    settle: float
    missing: float
    when: Condition
    then: str
    recovery: frozenset[str]
    quiet: float | None
    keep: int
    digest: str


def parse(path: str, text: str) -> tuple[Rule, ...]:
    """Return the rules of a text, in its order; `path` is named in errors. Raises RuleError."""
    if len(text) > SIZE_MAX:
        raise RuleError(f"{path} is {len(text)} characters long, more than the limit of {SIZE_MAX}")
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    reader = _Reader(path, text)
    return tuple(reader.rule(name, table) for name, table in reader.tables().items())


class _Reader:
    def __init__(self, path: str, text: str) -> None:
        self.path, self.text = path, text
        self.spans = scan(text)

    def tables(self) -> dict[str, Any]:
        try:
            if self.spans.too_deep is not None:
                raise RuleError("tables or arrays are nested too deep", None, self.at(self.spans.too_deep))
            data = tomllib.loads(self.text)
        except (ValueError, RecursionError) as error:
            match = _AT.search(str(error))
            offset = len(self.text.rstrip("\n"))
            if match is not None:
                offset = sum(len(line) + 1 for line in self.text.split("\n")[: int(match[1]) - 1]) + int(match[2]) - 1
            said = str(error)[: match.start()] if match else str(error)
            raise RuleError(
                f"this is not valid TOML: {said[:200]}",
                "one table for each rule: [its-name]",
                self.at((offset, offset + 1)),
            ) from None
        if len(data) > RULES_MAX:
            raise RuleError(f"{self.path} has {len(data)} rules, more than the limit of {RULES_MAX}")
        return data

    def at(self, span: tuple[int, int]) -> Location:
        return places.of_span(self.path, self.text, span)

    def fail(self, message: str, hint: str | None, *path: str, key: bool = False) -> RuleError:
        spans, others = (self.spans.keys, self.spans.values) if key else (self.spans.values, self.spans.keys)
        return RuleError(f"rule '{path[0]}': {message}", hint, self.at(spans.get(path) or others.get(path) or (0, 1)))

    def rule(self, name: str, table: Any) -> Rule:
        if not isinstance(table, dict) or not _NAME.fullmatch(name):
            raise self.fail(
                "it is no rule", "a rule is a table [name], its name of small letters, digits and '-'", name, key=True
            )
        for key, value in table.items():
            if key not in _KEYS:
                near = nearest(key, _KEYS)
                hint = f"did you mean '{near}'?" if near else f"known here: {', '.join(_KEYS)}"
                raise self.fail(f"unknown key '{key}'", hint, name, key, key=True)
            if type(value) is not _KEYS[key] or (
                isinstance(value, list) and not all(isinstance(one, str) for one in value)
            ):
                what = {str: "a string", int: "a whole number", list: "an array of strings", datetime.date: "a day"}
                raise self.fail(f"{key} must be {what[_KEYS[key]]}, not {str(value)[:60]!r}", None, name, key)
        for key in _NEEDED:
            if key not in table or not table[key]:
                raise self.fail(f"it has no '{key}'", _MISSING.get(key), name, key=True)
        return self.checked(name, table)

    def checked(self, name: str, table: dict[str, Any]) -> Rule:
        then, events = table["then"], tuple(table["events"])
        if then not in ACTIONS:
            raise self.fail(f"then is {then!r}", f"one of {', '.join(ACTIONS)}", name, "then")
        for kind in events:
            self.kind(name, kind, then)
        keys = {key for kind in events for key in KINDS[kind].body}
        where = self.condition(name, table, "where", {*keys, *FIELDS})
        when = self.condition(name, table, "when", VALUES)
        assert when is not None  # a rule has one
        if not when.names:
            raise self.fail("when asks nothing of the events", f"speak of {', '.join(VALUES)}", name, "when")
        per = tuple(table.get("per", ()))
        for part in per:
            if part not in ("subject", *keys):
                raise self.fail(
                    f"there is nothing '{part}' to count apart",
                    f"known: {', '.join(('subject', *sorted(keys)))}",
                    name,
                    "per",
                )
        recovery, quiet = self.recovery(name, table)
        window = LIFETIME if table["window"] == "lifetime" else self.seconds(name, table, "window", 0)
        if ("episodes" in when.names) != ("apart" in table):
            raise self.fail(
                "episodes and what keeps them apart go together",
                'apart = "14d": two weeks of work without such an event begin a new one', name, "when",
            )  # fmt: skip
        if when.most > KEEP_MAX and {*VALUES[:5], "since_repair"} & set(when.names):
            raise self.fail(f"when counts up to {when.most}", f"at most {KEEP_MAX} are kept of a node", name, "when")
        if not 0 <= table.get("alone", 0) <= ALONE_MAX:
            raise self.fail(f"alone is {table['alone']}", f"from 0, no bound, to {ALONE_MAX} nodes", name, "alone")
        each = _AN_EPISODE if "apart" in table else 4 if "users" in when.names else 2
        keep = min(KEEP_MAX, max(8, each * when.most))
        digest = hashlib.sha256(json.dumps(table, sort_keys=True, default=str).encode()).hexdigest()[:16]
        return Rule(
            name, table["about"], table["source"], str(table["date"]), events, where, per, window,
            self.seconds(name, table, "burst", 60), self.seconds(name, table, "apart", 0), table.get("alone", 0),
            self.seconds(name, table, "together", 0), self.seconds(name, table, "settle", 0),
            self.seconds(name, table, "missing", 0), when, then, recovery, quiet, keep, digest,
        )  # fmt: skip

    def kind(self, name: str, kind: str, then: str) -> None:
        if kind not in KINDS:
            near = nearest(kind, KINDS)
            hint = f"did you mean '{near}'?" if near else "docs/rules.md lists the kinds"
            raise self.fail(f"there are no events '{kind}'", hint, name, "events")
        why = trust.refusal(kind, then)
        if why is not None:
            message = f"it would conclude '{then}' from {kind}, and {why}"
            raise self.fail(
                message, 'what users bring about can ask for then = "revet", and nothing else', name, "then"
            )

    def condition(self, name: str, table: dict[str, Any], key: str, names: Any) -> Condition | None:
        if key not in table:
            return None
        try:
            return compiled(table[key], names)
        except ConditionError as error:
            span = self.spans.values.get((name, key), (0, 1))
            inside = self.text.find(table[key], *span)  # as it is written, unless it has escapes
            if inside >= 0:
                span = (inside + error.at[0], inside + error.at[0] + error.at[1])
            raise RuleError(f"rule '{name}': {key}: {error.message}", error.hint, self.at(span)) from None

    def seconds(self, name: str, table: dict[str, Any], key: str, default: float) -> float:
        if key not in table:
            return default
        value = units.seconds_of(table[key])
        if value is None or value <= 0:
            raise self.fail(
                f"{key} is {table[key]!r}", "a time like '24h', '7d' or '3min'" + _OR.get(key, ""), name, key
            )
        return value

    def recovery(self, name: str, table: dict[str, Any]) -> tuple[frozenset[str], float | None]:
        quiet, words = None, set()
        for text in table["recovery"]:
            word, _, rest = text.partition(" ")
            if word == QUIET:
                quiet = units.seconds_of(rest)
            if word not in RECOVERIES or (word == QUIET) != bool(rest) or (word == QUIET and not quiet):
                hint = f"of {', '.join(RECOVERIES[:-1])}, and 'quiet 7d'"
                raise self.fail(f"recovery is {text!r}", hint, name, "recovery")
            words.add(word)
        return frozenset(words), quiet


_MISSING = {
    "source": "who says that this is right: a paper, a vendor's page, your own experience",
    "date": "the day on which the source was looked up: date = 2026-11-29",
    "recovery": f"what ends it: {', '.join(RECOVERIES[:-1])}, or 'quiet 7d'",
    "window": "how far back it looks: '24h', or 'lifetime'",
    "then": f"what would be done: {', '.join(ACTIONS)}",
    "when": "when it is so, in CEL: count >= 5",
}
_OR = {"window": ", or 'lifetime'"}
