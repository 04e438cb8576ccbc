"""From series of an exporter to samples of devices: what a metric is of ours, and what each sample covers.

A gauge tells of the moment of a scrape or of the exporter's own interval before it. A sample is taken to cover the time
since the scrape before; where that is more than twice the usual, it covers the usual time, and the rest is a gap, which
is said. The first covers as much as is usual.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from piolet.base.errors import ObserveError
from piolet.observe.foreign.common import NS, Array, Remarks, sound
from piolet.observe.foreign.exposition import Scrapes, Series

_UNIT = re.compile(r"\(in ([^()]{1,12})\)")
_NONE = "not a number, or blank"


@dataclass(frozen=True)
class Metric:
    """What a metric of an exporter is of ours.

    factor  turns its unit into ours
    units   the words for its unit that its HELP may have in "(in UNIT)"; empty: not compared
    """

    quantity: str
    factor: float = 1.0
    units: tuple[str, ...] = ()


Key = tuple[str, str]  # node and device; the device '' is the node itself


def check_units(scrapes: Scrapes, metrics: Mapping[str, Metric]) -> None:
    """Raise ObserveError where the HELP of a metric names another unit than it has."""
    for name, text in scrapes.helps.items():
        found = _UNIT.search(text)
        if found and metrics[name].units and found[1] not in metrics[name].units:
            raise ObserveError(
                f"{name}: its HELP says 'in {found[1]}', and it is known in {metrics[name].units[0]}",
                "is this another exporter, or a changed list of counters?",
            )


def lasted(parts: Sequence[Mapping[str, Any]], scrapes: Scrapes, remarks: Remarks) -> tuple[int, int]:
    """Return from when to when samples tell (ns since 1970), and remark what is not known of their times."""
    start = int(min(part["time"][0] - round(part["span"][0] * NS) for part in parts))
    end = int(max(part["time"][-1] for part in parts))
    if scrapes.by_file:
        remarks.add("time", (start, end), "scrapes have no times: those are taken at which their files were written")
    for empty in scrapes.empty:
        remarks.add("scrapes", (empty, empty), "the scrape is empty")
    return start, end


def samples(
    found: Mapping[Key, Mapping[str, tuple[str, Series]]], metrics: Mapping[str, Metric], remarks: Remarks,
    blank: Callable[[Array], Array],
) -> dict[Key, dict[str, Any]]:  # fmt: skip
    """Return of each device "time", "span" and the quantities of its metrics.

    found   of a device, by quantity, the metric's name and its series
    blank   tells which values are the exporter's word for none

    Raises ObserveError: no device was scraped twice, or a value is there twice.
    """
    sorted_series = {
        key: {q: (name, *series.sorted(f"{name} of {' '.join(key).strip()}")) for q, (name, series) in own.items()}
        for key, own in found.items()
    }
    times = {
        key: np.unique(np.concatenate([when for _, when, _ in own.values()])) for key, own in sorted_series.items()
    }
    steps = [np.diff(own) for own in times.values() if len(own) > 1]
    if not steps:
        raise ObserveError(
            "there is one scrape only, and a sample covers the time since the one before", "give two or more"
        )
    usual = float(np.median(np.concatenate(steps)))
    made = {}
    for (node, device), own in sorted_series.items():
        when = times[node, device]
        subject = device or None
        rows: dict[str, Any] = {"time": when, "span": _spans(when, usual, remarks, node, subject)}
        whole = (int(when[0]), int(when[-1]))
        for quantity, (name, moments, values) in own.items():
            values = values.copy()
            bad = ~np.isfinite(values) | blank(values)
            if bad.any():
                remarks.add(name, whole, _NONE, int(bad.sum()), node, subject)
            values[bad] = math.nan
            values = sound(values * metrics[name].factor, quantity, name, remarks, whole, node, subject)
            if quantity == "energy":
                values = _growing(values, name, remarks, whole, node, subject)
            column = np.full(len(when), np.nan)
            column[np.searchsorted(when, moments)] = values
            if absent := len(when) - len(moments):
                remarks.add(name, whole, "not in every scrape", absent, node, subject)
            rows[quantity] = column
        made[node, device] = rows
    return made


def _spans(when: Array, usual: float, remarks: Remarks, node: str, subject: str | None) -> Array:
    """Return what each sample covers, in seconds, and say where there are gaps."""
    steps = np.diff(when, prepend=when[0] - round(usual)).astype(np.float64)
    for place in np.flatnonzero(steps > 2 * usual):
        start, end = int(when[place - 1]), int(when[place] - usual)
        missing = max(1, round((end - start) / usual))
        remarks.add("scrapes", (start, end), "no scrape", missing, node, subject)
        steps[place] = usual
    return steps / 1e9


def _growing(
    values: Array, name: str, remarks: Remarks, whole: tuple[int, int], node: str, subject: str | None
) -> Array:
    """Return a counter that goes on where it began anew."""
    known = np.flatnonzero(~np.isnan(values))
    steps = np.diff(values[known])
    back = np.flatnonzero(steps < 0)
    if not back.size:
        return values
    remarks.add(
        name, whole, f"the counter began anew {back.size} times: it goes on from where it was", None, node, subject
    )
    added = np.zeros(len(known))
    added[back + 1] = -steps[back]
    grown = values.copy()
    grown[known] = values[known] + np.cumsum(added)
    return grown
