"""What the figures of a report draw, as arrays: the page, PNG and PDF draw the same ones.

Where a load works in bursts that are shorter than a bin, neighbouring bins differ as the bursts happen to fall. So a
mean is drawn over a few pixels, and beside it stand the lowest and the highest sample: a band, not solid paint.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from piolet.score.overview import Overview
from piolet.score.report.screen import UNSURE_MOST
from piolet.score.report.screen import parts as rows_of
from piolet.score.saturation import Score, waterfall
from piolet.score.summary import Summary

Array = np.ndarray[Any, np.dtype[Any]]

COLUMNS = 200  # of a mean that is drawn
LINES_MAX = 16  # rows that have a line each; of more there are bands
HEAT_ROWS = 280  # of a picture; of more nodes a row has several
BLUE, ORANGE, GREEN, SKY = "#0072B2", "#E69F00", "#009E73", "#56B4E9"
PINK, RED, GREY = "#CC79A7", "#D55E00", "#888888"
# Okabe and Ito's colours, which people of all kinds of colour vision tell apart: what was used. What was lost is grey.
LIMITS = (("compute", BLUE), ("memory", ORANGE), ("communication", PINK))
LOST = (
    *(("throttled", "#5f666d"), ("stalled", "#8d9399"), ("narrow", "#b9bec3"), ("idle", "#e3e5e8")),
    ("unknown", "#f4ead6"),
)
PHASE_COLOURS = {"compute": BLUE, "memory": ORANGE, "communication": PINK, "idle": GREY, "few SMs": SKY}
PHASE_COLOURS |= {"stalled": RED, "unknown": GREY, "mostly idle": GREY}
USEFUL, NO_DATA = "useful", "#ffffff"
_LITTLE = 0.005
# Of cividis, as both heat maps draw it.
HEAT_KEY = ((0, "#00204d"), (25, "#414d6b"), (50, "#7c7b78"), (75, "#bcad6f"), (100, "#ffea46"))
ACTIVITY = (
    ("utilisation", "GPU utilisation"),
    ("sm", "SM activity"),
    ("occupancy", "SM occupancy"),
    ("dram", "DRAM activity"),
    ("tensor", "Tensor activity"),
    ("nvlink", "NVLink, busier direction"),
)
_SELDOM, _SELDOM_S = ("memory_used", "power"), 1.0  # read once a second
_PERCENTILES = ((5, 95), (25, 75))


@dataclass(frozen=True)
class Panel:
    """One panel over time: everything is in `unit`, with one value a bin; NaN: nothing is known.

    rows     a line for each device, where they are few: (row, bin), named by `names`
    bands    from low to high, outermost first, each with its name
    top      of the axis; None: what is highest
    """

    title: str
    unit: str
    colour: str
    mean: Array
    rows: Array
    names: list[str]
    bands: list[tuple[str, Array, Array]]
    top: float | None = None
    label: str = "mean"
    more: list[tuple[str, str, Array]] = field(default_factory=list)


def pooled(values: Array, how: Callable[..., Any] = np.nanmean, columns: int = COLUMNS) -> Array:
    """Return the last axis in at most `columns` pieces of one length (but the last), each put together by `how`."""
    size = values.shape[-1]
    step = -(-size // columns)
    if step <= 1:
        return values
    padded = np.concatenate([values, np.full((*values.shape[:-1], -size % step), np.nan)], axis=-1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        result: Array = how(padded.reshape(*values.shape[:-1], padded.shape[-1] // step, step), axis=-1)
    return result


def bridged(values: Array, bin_seconds: float) -> Array:
    """Return a series, (..., bin), whose values come every few bins with those between them, and as far before the
    first and behind the last as two of them are apart; a gap stays a gap."""
    result = np.array(values, float)
    for row in result.reshape(-1, result.shape[-1]):
        known = np.flatnonzero(~np.isnan(row))
        if len(known) in (0, len(row)):
            continue
        apart = np.diff(known)
        usual = max(1.0, _SELDOM_S / bin_seconds, float(np.median(apart)) if len(apart) > 1 else 0.0)
        for begin, end in itertools.pairwise(known):
            if 1 < end - begin <= 3 * usual:
                row[begin : end + 1] = np.linspace(row[begin], row[end], end - begin + 1)
        if usual > 1:
            reach, first, last = math.ceil(usual), known[0], known[-1]
            row[max(0, first - reach) : first] = row[first]
            row[last + 1 : last + 1 + reach] = row[last]
    return result


def drawn(values: Array, how: Callable[..., Any] = np.nanmean) -> Array:
    """Return what `pooled` makes as a line: a piece's value at its beginning, middle and end, which `times` are.

    Where two pieces meet it is the mean of both; beside a gap, and at both ends, a piece's own value up to its edge.
    """
    pieces = pooled(values, how)
    before, behind = (np.full_like(pieces, np.nan) for _ in range(2))
    before[..., 1:], behind[..., :-1] = pieces[..., :-1], pieces[..., 1:]
    meets = [np.where(np.isnan(other), pieces, (pieces + other) / 2) for other in (before, behind)]
    result: Array = np.stack([meets[0], pieces, meets[1]], axis=-1).reshape(*pieces.shape[:-1], 3 * pieces.shape[-1])
    return result


def times(view: Overview, columns: int = COLUMNS) -> Array:
    """Return beginning, middle and end of each piece that `pooled` makes, in seconds since the start."""
    size = next(iter(view.lines.values())).shape[-1]
    edges = np.clip(view.origin + np.arange(size + 1) * view.bin_seconds, 0, view.seconds)
    step = max(1, -(-size // columns))
    starts = np.arange(0, size, step)
    begin, end = edges[starts], edges[np.minimum(starts + step, size)]
    result: Array = np.stack([begin, (begin + end) / 2, end], axis=-1).ravel()
    return result


Part = tuple[str, str, Array]


def stack(summary: Summary) -> list[Part]:
    """Return what `parts_of` makes of a report."""
    return parts_of(summary.view.lines, summary.score)


def parts_of(rows: Mapping[str, Array], score: Score) -> list[Part]:
    """Return what the GPUs' time went into, as shares of each bin that add up to 1: name, colour, (bin).

    The saturation is divided by what limited each GPU in each bin. Where a pipe is missing that is not known.
    """
    lines = {name: rows[name].astype(float) for name in ("s", "c", "m", "n", "rated", "sm", "engine")}
    s = lines["s"]
    left = np.fmin(lines["rated"], s)
    wanted = {name for name, *_ in rows_of(score)}
    parts: list[tuple[str, str, Array]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a mean of nothing is NaN
        if score.unsure > UNSURE_MOST:
            parts.append((USEFUL, GREEN, np.nanmean(left, axis=0)))
        else:
            ranks = np.stack([np.nan_to_num(lines[name], nan=-1.0) for name in ("c", "m", "n")])
            first = ranks.argmax(axis=0)
            for number, (name, colour) in enumerate(LIMITS):
                part = np.where(np.isnan(s), np.nan, np.where(first == number, left, 0.0))
                parts.append((name, colour, np.nanmean(part, axis=0)))
        idle, narrow, stalled, unknown = waterfall(s, lines["sm"], lines["engine"])
        for (name, colour), part in zip(LOST, (s - left, stalled, narrow, idle, unknown), strict=True):
            if name in wanted:
                parts.append((name, colour, np.nanmean(np.where(np.isnan(s), np.nan, part), axis=0)))
    return parts


def shares(summary: Summary) -> list[tuple[str, str, float]]:
    """Return what `shares_of` makes of a report."""
    return shares_of(stack(summary), summary.score)


def shares_of(stacked: list[Part], score: Score) -> list[tuple[str, str, float]]:
    """Return what the whole time went into, in the order and colours of `stack`, and what is not known of it; they
    add up to 1."""
    parts = [(name, colour, float(np.nansum(values))) for name, colour, values in stacked]
    lost = {name: part for name, part, *_ in rows_of(score) if name != USEFUL}
    used = [part for part in parts if part[0] not in lost]
    whole = sum(part for _, _, part in used) or 1.0
    told = [
        *((name, colour, (score.useful or 0.0) * part / whole) for name, colour, part in used),
        *((name, colour, lost[name]) for name, colour in LOST if name in lost),
    ]
    if score.coverage > 1 - _LITTLE:
        return told
    known = ((name, colour, score.coverage * part) for name, colour, part in told)
    return [*known, ("no data", NO_DATA, 1 - score.coverage)]


def activity(summary: Summary) -> Iterator[Panel]:
    """Yield a panel for each activity that the paper's first figure has."""
    for name, title in ACTIVITY:
        nvlink = name == "nvlink"
        yield _panel(summary.view, name, title, "GB/s" if nvlink else "%", BLUE, 1e-9 if nvlink else 100, not nvlink)


def host_of(summary: Summary) -> str:
    """Return whose the host's figures are, as the collectors say it: the step's, or the whole node's."""
    said = sorted({text.partition("(")[2].rstrip(")") for text in summary.collectors if text.startswith("host (")})
    return "; ".join(said) or "the node"


def power(summary: Summary) -> Iterator[Panel]:
    """Yield power and memory."""
    yield _panel(summary.view, "power", "Power", "W", RED, 1.0)
    yield _panel(summary.view, "memory_used", "Device memory", "GiB", RED, 2.0**-30)


def host(summary: Summary) -> Iterator[Panel]:
    """Yield what is known of the host."""
    view = summary.view
    panels = (
        ("Cores in use", "", 1.0, (("cpu", "per node"),)),
        ("Memory", "GB", 1e-9, (("memory", "all"), ("memory_anon", "without page cache"))),
        ("I/O", "MB/s", 1e-6, (("read", "read"), ("write", "written"))),
        ("Network of the node", "MB/s", 1e-6, (("net_rx", "received"), ("net_tx", "sent"))),
        ("Busiest network interface", "% of its line rate", 100.0, (("nic", "mean of the nodes"),)),
        ("Tasks waited for the CPU", "% of time", 100.0, (("cpu_pressure", "some"),)),
        ("Tasks waited for more", "% of time", 100.0, (("memory_pressure", "memory"), ("io_pressure", "I/O"))),
    )
    for title, unit, factor, lines in panels:
        known = [(key, label) for key, label in lines if key in view.host and not np.isnan(view.host[key]).all()]
        if not known:
            continue
        (key, label), *others = known
        mean = bridged(view.host[key][0], view.bin_seconds) * factor
        more = [(name, ORANGE, bridged(view.host[other][0], view.bin_seconds) * factor) for other, name in others]
        yield Panel(title, unit, BLUE, mean, np.zeros((0, len(mean))), [], [], None, label, more)


def _panel(
    view: Overview, name: str, title: str, unit: str, colour: str, factor: float, is_share: bool = False
) -> Panel:
    values = view.lines[name].astype(float) * factor
    if name in _SELDOM:
        values = bridged(values, view.bin_seconds)
    edges = None
    if name in view.low:
        low, high = (each[name].astype(float) * factor for each in (view.low, view.high))
        edges = (bridged(low, view.bin_seconds), bridged(high, view.bin_seconds)) if name in _SELDOM else (low, high)
    what = "GPUs" if is_gpus(view) else "nodes"
    return panel(title, unit, colour, values, list(view.lanes), edges, what, 100.0 if is_share else None)


def panel(
    title: str,
    unit: str,
    colour: str,
    values: Array,
    names: list[str],
    edges: tuple[Array, Array] | None = None,
    what: str = "nodes",
    top: float | None = None,
) -> Panel:
    """Return the panel of values by row and bin: a line for each row where they are few, else bands.

    edges    the lowest and the highest sample of each bin
    """
    bands: list[tuple[str, Array, Array]] = [("lowest to highest sample", *edges)] if edges else []
    rows = np.zeros((0, values.shape[1]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a mean of nothing is NaN
        if len(values) <= LINES_MAX:
            rows = values
        else:
            for low, high in _PERCENTILES:
                inner = percentiles(values, (low, high))
                bands.append((f"{high - low} % of {what}", inner[0], inner[1]))
        mean = np.nanmean(values, axis=0)
    return Panel(title, unit, colour, mean, rows, names, bands, top)


def percentiles(values: Array, wanted: tuple[float, ...]) -> Array:
    """Return percentiles of what is known of the rows, (percentile, bin): nanpercentile at a tenth of its time."""
    ordered = np.sort(values, axis=0)  # what is not known comes last
    last = np.maximum(len(values) - 1 - np.isnan(values).sum(axis=0), 0)
    place = np.array(wanted)[:, None] / 100 * last
    below = np.floor(place).astype(int)
    low, high = (np.take_along_axis(ordered, at, axis=0) for at in (below, np.minimum(below + 1, last)))
    result: Array = low + (high - low) * (place - below)
    return result


def is_gpus(view: Overview) -> bool:
    """Return whether the rows of the timelines are single GPUs, not nodes."""
    return len(view.lanes) == len(view.gpus)


@dataclass(frozen=True)
class Heat:
    """Saturation by row and time, 0..1: `mean` and `worst` (row, column); they are the same where a row is one GPU.

    names    of the rows; `what` these are
    """

    names: list[str]
    what: str
    mean: Array
    worst: Array


def heat(summary: Summary, columns: int = COLUMNS) -> Heat:
    """Return all rows: GPUs, or nodes with the mean and the worst of their GPUs."""
    view = summary.view
    mean = pooled(view.lines["s"].astype(float), columns=columns)
    if is_gpus(view):
        return Heat(view.lanes, "GPU", mean, mean)
    return Heat(view.lanes, "node", mean, pooled(view.worst.astype(float), columns=columns))


def grouped(found: Heat, rows: int = HEAT_ROWS) -> Heat:
    """Return at most so many rows, each of several that follow each other: their mean, and the worst of them."""
    step = -(-len(found.names) // rows)
    if step <= 1:
        return found
    starts = range(0, len(found.names), step)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        mean = np.stack([np.nanmean(found.mean[i : i + step], axis=0) for i in starts])
        worst = np.stack([np.nanmin(found.worst[i : i + step], axis=0) for i in starts])
    names = [f"{found.names[i]} to {found.names[min(i + step, len(found.names)) - 1]}" for i in starts]
    return Heat(names, f"{step} {found.what}s", mean, worst)
