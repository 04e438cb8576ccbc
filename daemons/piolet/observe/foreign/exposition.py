"""Prometheus's text format, as exporters serve it at /metrics: what was scraped, as series of times and values.

A file is one scrape, or several where its samples have times. The time of a scrape without is what its file's name
says, seconds or milliseconds since 1970 or 20261129T120000Z, or when the file was written last.

Format: prometheus.io/docs/instrumenting/exposition_formats, text format 0.0.4.
"""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from piolet.base.errors import ObserveError
from piolet.observe.foreign.common import EARLIEST, LATEST, NS, Array, content_of

_LINE_MOST, _LABELS_MOST, _SERIES_MOST, _FILES_MOST = 16384, 64, 100_000, 200_000
_NUMBER = r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]{1,4})?|NaN|[-+]?Inf"
_SAMPLE = re.compile(
    rf"(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)[ \t]*(?:\{{(?P<labels>[^\n]*)\}})?[ \t]*(?P<value>{_NUMBER})"
    r"(?:[ \t]+(?P<time>-?[0-9]{1,19}))?[ \t]*$"
)
_LABEL = re.compile(r'[ \t]*([a-zA-Z_][a-zA-Z0-9_]*)[ \t]*=[ \t]*"((?:[^"\\\n]|\\.)*)"[ \t]*(?:,|$)')
_HELP = re.compile(r"#[ \t]+HELP[ \t]+([a-zA-Z_:][a-zA-Z0-9_:]*)[ \t]?(.*)")
_ESCAPE = re.compile(r"\\(.)")
_EPOCH = re.compile(r"(?<![0-9])(?:([0-9]{10})(\.[0-9]{1,9})?|([0-9]{13}))(?![0-9])")
_ISO = re.compile(r"([0-9]{4})-?([0-9]{2})-?([0-9]{2})T([0-9]{2})[:-]?([0-9]{2})[:-]?([0-9]{2})(\.[0-9]{1,6})?Z")

Labels = tuple[tuple[str, str], ...]


@dataclass
class Series:
    """What a metric with some labels had when."""

    times: array[int] = field(default_factory=lambda: array("q"))
    values: array[float] = field(default_factory=lambda: array("d"))

    def sorted(self, what: str) -> tuple[Array, Array]:
        """Return times, ns, and values in order; of one sample that was given twice one. Raises ObserveError."""
        times, values = np.array(self.times, np.int64), np.array(self.values, np.float64)
        order = np.argsort(times, kind="stable")
        times, values = times[order], values[order]
        again = np.flatnonzero(np.diff(times) == 0)
        if (clash := again[~np.isclose(values[again], values[again + 1], rtol=0, atol=0, equal_nan=True)]).size:
            when = datetime.fromtimestamp(int(times[clash[0]]) / NS, UTC).isoformat()
            raise ObserveError(f"{what} has two values at {when}: {values[clash[0]]:g} and {values[clash[0] + 1]:g}")
        keep = np.ones(len(times), bool)
        keep[again + 1] = False
        return times[keep], values[keep]


@dataclass
class Scrapes:
    """All that was scraped of the metrics that were wanted.

    helps   of a metric the text after HELP
    others  metrics that nobody wanted, with how many samples they had
    by_file whether a time had to be taken from when a file was written
    """

    series: dict[tuple[str, Labels], Series] = field(default_factory=dict)
    helps: dict[str, str] = field(default_factory=dict)
    others: dict[str, int] = field(default_factory=dict)
    empty: list[int] = field(default_factory=list)
    by_file: bool = False


def read(paths: Iterable[Path], wanted: Collection[str]) -> Scrapes:
    """Return what the files have of the metrics `wanted`. Raises ObserveError: a file is not of that format."""
    scrapes, known = Scrapes(), {}  # type: ignore[var-annotated]
    for count, path in enumerate(paths):
        if count >= _FILES_MOST:
            raise ObserveError(f"more than {_FILES_MOST} files are not read at once")
        _read(path, scrapes, frozenset(wanted), known)
    return scrapes


def _read(path: Path, scrapes: Scrapes, wanted: frozenset[str], known: dict[str, Labels]) -> None:
    data = content_of(path)
    if not data.strip():
        scrapes.empty.append(_time_of(path, scrapes))
        return
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise ObserveError(f"{path} is no text in UTF-8") from None
    if not text.endswith("\n"):
        raise ObserveError(f"{path} is cut off: its last line has no end", "leave the file out, or scrape again")
    own_time: int | None = None
    seen: set[tuple[str, Labels]] = set()
    for number, line in enumerate(text.split("\n"), 1):
        if not line or line.isspace():
            continue
        if line[0] == "#":
            if (found := _HELP.fullmatch(line)) and found[1] in wanted:
                scrapes.helps.setdefault(found[1], found[2][:500])
            continue
        match = _SAMPLE.match(line) if len(line) <= _LINE_MOST else None
        if match is None:
            raise ObserveError(f"{path}: line {number} is no sample of Prometheus's text format")
        name = match["name"]
        if name not in wanted:
            if name in scrapes.others or len(scrapes.others) < 10_000:
                scrapes.others[name] = scrapes.others.get(name, 0) + 1
            continue
        text_of_labels = match["labels"] or ""
        if (labels := known.get(text_of_labels)) is None:
            labels = _labels(text_of_labels, path, number)
            if len(known) < _SERIES_MOST:
                known[text_of_labels] = labels
        if match["time"] is None:
            if own_time is None:
                own_time = _time_of(path, scrapes)
            if (name, labels) in seen:
                raise ObserveError(
                    f"{path}: line {number} has {name} with the same labels again, and no time",
                    "a file is one scrape, unless its samples have times",
                )
            seen.add((name, labels))
            when = own_time
        else:
            when = int(match["time"]) * 10**6
            if not EARLIEST <= when <= LATEST:
                raise ObserveError(
                    f"{path}: line {number}: the time {match['time']} is not between 2000 and 2100",
                    "times in this format are milliseconds since 1970",
                )
        series = scrapes.series.get((name, labels))
        if series is None:
            if len(scrapes.series) >= _SERIES_MOST:
                raise ObserveError(f"{path}: more than {_SERIES_MOST} series are not read at once")
            series = scrapes.series[name, labels] = Series()
        series.times.append(when)
        series.values.append(float(match["value"]))


def _labels(text: str, path: Path, number: int) -> Labels:
    found: list[tuple[str, str]] = []
    place = 0
    while place < len(text):
        match = _LABEL.match(text, place)
        if match is None or len(found) >= _LABELS_MOST or any(name == match[1] for name, _ in found):
            raise ObserveError(f"{path}: line {number} has labels that are none of Prometheus's text format")
        found.append((match[1], _ESCAPE.sub(lambda one: "\n" if one[1] == "n" else one[1], match[2])))
        place = match.end()
    return tuple(sorted(found))


def _time_of(path: Path, scrapes: Scrapes) -> int:
    """Return when a scrape was taken, in nanoseconds since 1970."""
    if (found := _EPOCH.search(path.name)) is not None:
        when = int(found[1]) * NS + round(float(found[2] or 0) * NS) if found[1] else int(found[3]) * 10**6
    elif (found := _ISO.search(path.name)) is not None:
        try:
            moment = datetime(*(int(found[place]) for place in range(1, 7)), tzinfo=UTC)  # type: ignore[misc, arg-type]
        except ValueError:
            raise ObserveError(f"{path}: the time in its name is none") from None
        when = round(moment.timestamp()) * NS + round(float(found[7] or 0) * NS)
    else:
        scrapes.by_file = True
        when = os.stat(path).st_mtime_ns
    if not EARLIEST <= when <= LATEST:
        raise ObserveError(f"{path}: its time is not between 2000 and 2100")
    return when
