"""What stands on the time axis beside the lines: findings, events, marks, and where data are missing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]

from piolet.observe.page.grid import Grid
from piolet.observe.page.panels import FEW
from piolet.score.report.shell import TEXT_MOST, plain

ITEMS_MOST = 400  # of a lane in the page; how many there are is said
EVENTS_MOST, ROWS_MOST, LANES_MOST = 200, 1_000_000, 4
SEVERITIES = ("error", "warning", "info")
_WORDS = {"fatal": "error", "warn": "warning"}  # of records of events


@dataclass(frozen=True)
class Item:
    """Something on the axis: from and to in seconds since the start, how bad it is, and a text."""

    start: float
    end: float
    severity: str
    text: str


def rows_of(table: pa.Table) -> list[dict[str, Any]]:
    """Return a table's rows with times in nanoseconds since 1970."""
    names = [f.name for f in table.schema if pa.types.is_timestamp(f.type)]
    for name in names:
        at = table.schema.get_field_index(name)
        table = table.set_column(at, name, table[name].cast(pa.int64()))
    rows: list[dict[str, Any]] = table.to_pylist()
    for row in rows:
        row.update({name: row[name] * 1000 for name in names if row[name] is not None})
    return rows


def findings(grid: Grid) -> list[dict[str, Any]]:
    """Return the findings, the surest first."""
    return sorted(rows_of(grid.findings), key=lambda row: -(row["confidence"] or 0.0))


def events(grid: Grid, most: int = ITEMS_MOST) -> tuple[list[dict[str, Any]], int]:
    """Return the gravest events, in the order of time, and how many there are."""
    table = grid.step.table("events")
    count = len(table)
    if count > most:
        order = pa.array([*_WORDS, *SEVERITIES])
        ranks = pc.index_in(table["severity"].cast(pa.string()), order).fill_null(len(order))
        table = table.take(pc.sort_indices(ranks)[:most])
    return sorted(rows_of(table), key=lambda row: row["time"] or 0), count


def where(row: dict[str, Any]) -> str:
    """Return of what a row is: node and subject, as far as they are known."""
    return " ".join(str(row[name]) for name in ("node", "subject") if row.get(name))


def track(grid: Grid) -> dict[str, Any]:
    """Return the lanes of the axis that have anything, as the script has them."""
    found = [
        Item(*_span(grid, row["start"], row["end"]), "finding", f"{row['detector']}: {told(row)}")
        for row in findings(grid)
    ]
    happened, count = events(grid)
    of_events = [Item(*_span(grid, row["time"]), _severity(row), f"{row['kind']}: {told(row)}") for row in happened]
    lanes = [
        *_rows(found),
        ("events", of_events, count),
        ("marks", *_counted(_marks(grid))),
        ("no data", *_counted(gaps(grid))),
    ]
    plain_lanes = [
        {
            "name": name,
            "count": many,
            "items": [[round(i.start, 2), round(i.end, 2), i.severity, plain(i.text)[:TEXT_MOST]] for i in items],
        }
        for name, items, many in lanes
        if items
    ]
    return {"kind": "track", "lanes": plain_lanes}


def _rows(found: list[Item]) -> Iterator[tuple[str, list[Item], int]]:
    """Yield findings in as many lanes as they overlap, up to LANES_MOST; the surest come first."""
    lanes: list[list[Item]] = []
    for item in found[:ITEMS_MOST]:
        free = (lane for lane in lanes if all(item.end <= other.start or item.start >= other.end for other in lane))
        lane = next(free, lanes[-1] if len(lanes) == LANES_MOST else None)
        if lane is None:
            lanes.append(lane := [])
        lane.append(item)
    for number, lane in enumerate(lanes):
        yield "" if number else "findings", sorted(lane, key=lambda item: item.start), len(lane)


def gaps(grid: Grid) -> Iterator[Item]:
    """Yield where data are missing: spans of the same source and reason that meet, of any node, are one."""
    table = grid.step.table("quality", ["node", "source", "start", "end", "reason"])
    spans: dict[tuple[str, str], list[tuple[float, float, str]]] = {}
    interval = grid.step.meta.get("interval")
    # What is missing from the first sample to the last is never there, and stands in the table alone.
    first = min(1.5 * interval, 0.1 * grid.seconds) if isinstance(interval, int | float) else 0.01 * grid.seconds
    for row in rows_of(table):
        start, end = grid.at(row["start"]), grid.at(row["end"])
        if start is None or end is None or end <= start:
            continue
        if start > first or end < grid.seconds - first:
            spans.setdefault((row["source"] or "", row["reason"] or ""), []).append((start, end, row["node"] or ""))
    for (source, reason), own in spans.items():
        own.sort()
        begin, last, nodes = own[0][0], own[0][1], {own[0][2]}
        for start, end, node in [*own[1:], (math.inf, math.inf, "")]:
            if start <= last + grid.width:
                last = max(last, end)
                nodes.add(node)
                continue
            where_ = next(iter(nodes)) if len(nodes) == 1 else f"{len(nodes)} nodes"
            yield Item(begin, last, "gap", f"{source}, {where_}: {reason}")
            begin, last, nodes = start, end, {node}


def _marks(grid: Grid) -> Iterator[Item]:
    """Yield marks that are no line, since there are few of them; and where one was no number."""
    table = grid.step.table("marks", ["time", "node", "subject", "name", "value"])
    if not len(table):
        return
    count = {row["values"]: row["counts"] for row in pc.value_counts(table["name"].cast(pa.string())).to_pylist()}
    few = pa.array([name for name, many in count.items() if many < FEW], pa.string())
    is_few = pc.is_in(table["name"].cast(pa.string()), few)
    broken = pc.fill_null(pc.invert(pc.is_finite(table["value"])), True)
    for row in rows_of(table.filter(pc.or_(is_few, broken)).slice(0, 10 * ITEMS_MOST)):
        value = row["value"]
        is_number = value is not None and math.isfinite(value)
        text = f"{row['name']} = {value:g}" if is_number else f"{row['name']} is not a number"
        yield Item(*_span(grid, row["time"]), "info" if is_number else "error", text)


def _counted(items: Iterable[Item]) -> tuple[list[Item], int]:
    whole = list(items)
    largest = sorted(whole, key=lambda item: (item.severity != "error", item.start - item.end))[:ITEMS_MOST]
    return sorted(largest, key=lambda item: item.start), len(whole)


def _span(grid: Grid, start: int | None, end: int | None = None) -> tuple[float, float]:
    first = grid.at(start)
    last = grid.at(end)
    first = 0.0 if first is None else first
    return first, max(first, last) if last is not None else first


def _severity(row: dict[str, Any]) -> str:
    word = _WORDS.get(row["severity"], row["severity"])
    return word if word in SEVERITIES else "info"


def told(row: dict[str, Any]) -> str:
    """Return a row's text, with the node and the mount point that it is about where it does not name them."""
    text = str(row["text"] or "")
    node, subject = str(row.get("node") or ""), str(row.get("subject") or "").removeprefix("fs:")
    missing = [name for name in (node, subject if subject.startswith("/") else "") if name and name not in text]
    return f"{' '.join(missing)}: {text}" if missing else text
