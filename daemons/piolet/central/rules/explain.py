"""A case in words: what was concluded, by which rule, from which records, and what would be done."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence

from piolet.base.texts import columns
from piolet.central.conclusions import CLOSED, DRAIN, NOTE, OPEN, REBOOT, REVET, TICKET, WEIGHT, Conclusion
from piolet.central.rules import trust
from piolet.central.rules.language import LIFETIME, Rule
from piolet.central.rules.words import span
from piolet.events.envelope import Event

WOULD = {
    NOTE: "nothing: it is written down",
    WEIGHT: "Slurm would schedule onto other nodes first",
    REVET: "the site would be asked to vet the node again",
    TICKET: "people would be asked to look at the node",
    REBOOT: "the node would be booted when it is idle",
    DRAIN: "the node would be drained",
}
_SAID_MAX = 100


def when(time: float) -> str:
    """Return a time of day in UTC, as `date -u --iso-8601=seconds` has it."""
    return datetime.datetime.fromtimestamp(round(time), datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def case(conclusions: Sequence[Conclusion], records: Iterable[Event], rules: Sequence[Rule]) -> list[str]:
    """Return a case as lines.

    conclusions  the case's: its opening, and its closing where it is closed
    records      those of its events that are still there, and that who asks may see
    rules        today's; where the rule has changed since, that is said
    """
    opened = next(one for one in conclusions if one.state == OPEN)
    lines = [f"case {opened.case}: {opened.sentence}", f"  opened  {when(opened.time)}"]
    for one in conclusions:
        if one.state == CLOSED:
            lines.append(f"  closed  {when(one.time)}: {one.sentence.removeprefix(f'{one.node}: ')}")
    lines.append(f"  would   {WOULD[opened.action]}; in shadow nothing is done")
    now = next((one for one in rules if one.name == opened.rule), None)
    if now is None:
        lines.append(f"  rule    {opened.rule}, which is not among today's rules")
    else:
        changed = "" if now.digest == opened.digest else ", which has been changed since"
        lines += [f"  rule    {now.name}{changed}: {now.when.text}", f"  source  {now.source} ({now.date})"]
    if opened.values:
        lines.append("  seen    " + ", ".join(f"{name} = {value:g}" for name, value in sorted(opened.values.items())))
    found = {one.key: one for one in records}
    lines.append(f"  records {len(opened.records)}")
    rows = [_row(found[key]) for key in opened.records if key in found]
    lines += [f"    {line}".rstrip() for line in columns(rows)]
    gone = [key for key in opened.records if key not in found]
    return lines + [f"    {'/'.join(map(str, key))}: not here, or not for you to see" for key in gone]


def _row(event: Event) -> tuple[str, str, str, str]:
    said = ", ".join(f"{key} {value}" for key, value in event.body.items() if value is not None)
    said = said if len(said) <= _SAID_MAX else said[: _SAID_MAX - 1] + "…"
    whose = trust.doer(event)
    doer = event.source if whose == event.source else f"{event.source}, of a user's doing"
    of = f"job {event.job}" + (f" of {event.uid}" if event.uid is not None else "") if event.job is not None else ""
    said = "; ".join(part for part in (event.subject, of, said) if part)
    return (
        when(event.time - (event.offset or 0.0)),
        event.kind,
        doer,
        "".join(c if c.isprintable() else "?" for c in said),
    )


def rules_list(rules: Iterable[Rule]) -> list[str]:
    """Return rules as lines: a row each, and what it stands on."""
    lines = []
    for rule in rules:
        far = "lifetime" if rule.window == LIFETIME else span(rule.window)
        ends = sorted(rule.recovery - {"quiet"}) + ([f"quiet for {span(rule.quiet)}"] if rule.quiet else [])
        lines += [
            f"{rule.name}: {rule.about}",
            f"  when    {rule.when.text}   (of {', '.join(rule.events)}; {far})",
            f"  would   {WOULD[rule.then]}",
            f"  ends    {', '.join(ends)}",
            f"  source  {rule.source} ({rule.date})",
        ]
    return lines
