"""The page's parts that are texts and tables: findings, what changed, vetting, environment, quality, events."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from piolet.base import hostlist, texts
from piolet.environment import secrets
from piolet.observe.job import Changes, Environment, Reason, Vetting
from piolet.observe.page import track
from piolet.observe.page.grid import Grid
from piolet.score.report import shell
from piolet.score.report.screen import duration
from piolet.score.report.shell import escaped

_FINDINGS_MOST, _GAPS_MOST = 30, 60
_DEEP = 4
_NOTHING_WRONG = ("ended_well", "runs", "waits")
_PLAIN = ("variables",)  # what is in it needs no name of where it stands
_DEFINITION_MOST = 20_000
_LONG = 600  # characters of a text


def findings(grid: Grid) -> str:
    """Return what detectors found."""
    found = track.findings(grid)
    cards = "".join(_finding(grid, row) for row in found[:_FINDINGS_MOST])
    if len(found) > _FINDINGS_MOST:
        cards += f"<p class=soft>and {len(found) - _FINDINGS_MOST} more, less sure</p>"
    return shell.section("Findings", cards, name="findings")


def _finding(grid: Grid, row: dict[str, Any]) -> str:
    start, end = (grid.at(row[name]) for name in ("start", "end"))
    facts = []
    if start is not None:
        facts.append(f"from {duration(start)}" + (f" to {duration(end)}" if end is not None else ""))
    if row["effect"] is not None:
        unit, effect = row["unit"] or "", row["effect"]
        facts.append(f"effect {100 * effect:.0f} %" if unit == "1" else f"effect {effect:.3g} {unit}".rstrip())
    if row["confidence"] is not None:
        facts.append(f"confidence {100 * row['confidence']:.3g} %")
    facts.append(f"found by {row['detector']} {row['version'] or ''}".rstrip())
    button = ""
    if start is not None:
        last = grid.seconds if end is None else end
        button = f"<button type=button data-from={start:.3f} data-to={last:.3f}>show in time</button>"
    evidence = shell.definitions(_flat(_json(row["evidence"])))
    details = f"<details><summary>evidence</summary>{evidence}</details>" if evidence else ""
    advice = f"<p>{_text(row['advice'])}</p>" if row["advice"] else ""
    facts += [track.where(row)] if track.where(row) else []
    about_it = f"<p class=soft>{escaped(' · '.join(facts))}</p>"
    return f"<div class=finding><b>{_text(track.told(row))}</b>{advice}{about_it}{details}{button}</div>"


def why(reasons: Iterable[Reason]) -> str:
    """Return why the job ended as it did; '' where it ended well, and what was found stands among the findings."""
    cards, told = "", list(reasons)
    for reason in [] if told and told[0].kind in _NOTHING_WRONG else told:
        evidence = "".join(f"<p class=soft>{_text(line)}</p>" for line in reason.evidence)
        advice = f"<p>{_text(reason.advice)}</p>" if reason.advice else ""
        cards += f"<div class=finding><b>{_text(reason.sentence)}</b>{advice}{evidence}</div>"
    return shell.section("Why it ended so", cards, name="why")


def changes(found: Changes | None) -> str:
    """Return what is other than in the last good run, what is not, and what cannot be compared."""
    if found is None:
        return ""
    rows = [[(text := _cut(cell), text) for cell in (c.what, c.before, c.now, c.text)] for c in found.changes]
    table = shell.table(("what", "before", "now", ""), rows, words=True) if rows else "<p>Nothing that is known.</p>"
    when = (
        "" if found.ended is None else time.strftime(", which ended on %d %b %Y, %H:%M UTC", time.gmtime(found.ended))
    )
    lines = (("as it was", ", ".join(found.same)), ("not known", "; ".join(found.unknown)))
    note = f"Against job {found.since}{when}."
    return shell.section(
        "What changed since your last good run", table, shell.definitions(lines), note=note, name="changes"
    )


def vettings(meta: Any, found: Iterable[Vetting]) -> str:
    """Return the vettings of the job, and without any what the step's data say of one."""
    known = [_vetting(one) for one in found]
    return shell.section("Vetting", *(known or [shell.definitions(_flat(meta))]), name="vetting")


def _vetting(one: Vetting) -> str:
    left = [(f"left out: {node}", "; ".join(reasons)) for node, reasons in one.left_out.items()]
    facts = [
        ("protocol", one.protocol),
        ("no start", one.abort),
        ("good", hostlist.compress(one.good)),
        ("good with a warning", hostlist.compress(one.warned)),
        *left,
        ("took", "" if one.seconds is None else duration(one.seconds)),
        ("file", one.file),
    ]
    return shell.definitions((name, _cut(text)) for name, text in facts)


def environments(meta: Any, found: Iterable[Environment]) -> str:
    """Return what the steps ran in, and without any what the step's data say of it."""
    known = []
    for one in found:
        facts = [
            ("steps", ", ".join(one.steps)), ("asked for", one.request), ("image", one.image), ("digest", one.digest),
            ("files", ", ".join(one.files)), ("not kept", ", ".join(one.secrets)),
        ]  # fmt: skip
        shown = "\n".join(map(secrets.line, one.definition.splitlines()))[:_DEFINITION_MOST]
        whole = f"<details><summary>definition</summary><pre>{escaped(shown)}</pre></details>" if shown else ""
        known.append(shell.definitions((name, _cut(text)) for name, text in facts) + whole)
    return shell.section("Environment", *(known or [shell.definitions(_flat(meta))]), name="environment")


def quality(grid: Grid, missing: Iterable[str]) -> str:
    """Return what the data do not tell, and why: by source and reason; and what else is not known of the job."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in track.rows_of(grid.step.quality.slice(0, track.ROWS_MOST)):
        groups.setdefault((row["source"] or "", row["reason"] or ""), []).append(row)
    rows = []
    for (source, reason), own in sorted(groups.items(), key=lambda group: -len(group[1])):
        nodes = {row["node"] for row in own if row["node"]}
        values = sum(row["values"] or 0 for row in own)
        spans = [(grid.at(row["start"]), grid.at(row["end"])) for row in own]
        first = min((start for start, _ in spans if start is not None), default=None)
        last = max((end for _, end in spans if end is not None), default=None)
        when = "" if first is None or last is None else f"{duration(first)} to {duration(last)}"
        of = next(iter(nodes)) if len(nodes) == 1 else texts.counted(len(nodes), "node") if nodes else "the step"
        many = f"{values:,}" if values else ""
        cells = ((source, source), (of, len(nodes)), (when, first or 0.0), (many, values), (reason, reason))
        rows.append([(_cut(text), _cut(value)) for text, value in cells])
    hidden = len(rows) - _GAPS_MOST
    head = ("source", "where", "when", "values missing", "why")
    table = shell.table(head, rows[:_GAPS_MOST], sort=True, words=True) if rows else ""
    more = f"<p class=soft>and {hidden} more reasons</p>" if hidden > 0 else ""
    more += "".join(f"<p>{_text(line)}</p>" for line in missing)
    note = "What is not known is left out of every figure; it is never a zero."
    return shell.section("Data quality", table + more, note=note if rows else "", name="quality")


def events(grid: Grid) -> str:
    """Return the events as a table."""
    found, count = track.events(grid, track.EVENTS_MOST)
    rows = []
    for row in found:
        at = grid.at(row["time"])
        when = "" if row["time"] is None else time.strftime("%H:%M:%S", time.gmtime(row["time"] / 1e9))
        rows.append([
            (duration(at) if at is not None else "", at if at is not None else -1), (when, at or 0),
            (row["severity"] or "", row["severity"] or ""), (_cut(row["kind"]), ""), (_cut(row["source"]), ""),
            (_cut(track.where(row)), ""), (_cut(row["text"]), ""),
        ])  # fmt: skip
    if not rows:
        return ""
    head = ("after", "UTC", "severity", "kind", "says", "where", "text")
    table = shell.table(head, rows, sort=True, words=True)
    label = texts.counted(count, "event") + (f", the gravest {len(rows)} of them here" if count > len(rows) else "")
    return shell.section("Events", f"<details><summary>{label}</summary>{table}</details>", name="events")


def _text(value: object) -> str:
    return escaped(_cut(value))


def _cut(value: object) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= _LONG else text[: _LONG - 1] + "…"


def _json(text: str | None) -> Any:
    try:
        return json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}


def _flat(value: Any, name: str = "", deep: int = 0) -> Iterator[tuple[str, str]]:
    """Yield plain values with the names that lead to them."""
    if isinstance(value, Mapping) and deep < _DEEP:
        for key, item in value.items():
            own = f"{name}: {key}" if name and name not in _PLAIN else str(key)
            hidden = isinstance(item, str) and secrets.is_secret(str(key))
            yield from _flat(secrets.HIDDEN if hidden else item, own, deep + 1)
    elif isinstance(value, list | tuple) and not any(isinstance(item, Mapping | list) for item in value):
        yield name, _cut(", ".join(map(_number, value)))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value[:50], 1):
            parts = "; ".join(f"{key} {text}".strip() for key, text in _flat(item, "", 1))
            yield f"{name} {number}".strip(), _cut(parts)
    elif value is not None:
        yield name, _cut(_number(value))


def _number(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
