"""The time lines of a step: one panel a quantity, and none for what nobody told."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]

from piolet.observe.page import grid as grids
from piolet.observe.page.grid import Grid, Lanes
from piolet.score.report import series
from piolet.score.report.series import BLUE, GREEN, ORANGE, PINK, RED, Panel

Array = np.ndarray[Any, np.dtype[Any]]

FEW = 8  # values of a mark: fewer are single events, on the axis
_MARKS_MOST, _MOUNTS_MOST, _PORTS_MOST = 8, 6, 4
_GPU = (
    ("utilisation", "GPU utilisation", "%", 100.0, 100.0, BLUE),
    ("sm", "SM activity", "%", 100.0, 100.0, BLUE),
    ("tensor", "Tensor activity", "%", 100.0, 100.0, BLUE),
    ("dram", "Device memory activity", "%", 100.0, 100.0, BLUE),
    ("nvlink", "NVLink, busier direction", "GB/s", 1e-9, None, BLUE),
    ("power", "Power of a GPU", "W", 1.0, None, RED),
    ("clock_sm", "SM clock", "MHz", 1.0, None, RED),
    ("temperature", "Temperature", "°C", 1.0, None, RED),
    ("memory_used", "Device memory", "GiB", 2.0**-30, None, RED),
)
_HOST = (
    ("Cores in use", "", 1.0, (("cpu", "per node"),)),
    ("Cores that a quota held up", "", 1.0, (("cpu_throttled", "per node"),)),
    ("Memory", "GB", 1e-9, (("memory_anon", "without page cache"), ("memory", "all"))),
    (
        "Tasks waited",
        "% of time",
        100.0,
        (("io_pressure", "I/O"), ("cpu_pressure", "CPU"), ("memory_pressure", "memory")),
    ),
    ("Files of any kind", "MB/s", 1e-6, (("file_read", "read"), ("file_write", "written"))),
    ("Power of a node", "W", 1.0, (("node_power", "node"), ("cpu_power", "processors"))),
)
_MORE = (ORANGE, PINK, GREEN)
_ABOVE_0 = ("cpu_throttled",)  # has a panel where it says something: most steps have no quota, and 0 of it
_SELDOM = ("power", "clock_sm", "temperature", "memory_used")  # are read once a second, however often others are
GPU_NAMES = (*(name for name, *_ in _GPU if name != "nvlink"), "nvlink_tx", "nvlink_rx")
HOST_NAMES = tuple(name for *_, lines in _HOST for name, _ in lines)


def gpus(grid: Grid) -> Iterator[Panel]:
    """Yield what is known of GPUs."""
    lanes = _with_nvlink(grid.gpus_of)
    for name, title, unit, factor, top, colour in _GPU:
        found = lanes.known(name)
        if found is None or (name == "nvlink" and not np.nanmax(found.most) > 0):
            continue
        values, edges = found.mean.astype(float) * factor, _extremes(found.least, found.most, factor)
        if name in _SELDOM:
            values = series.bridged(values, grid.width)
            edges = (series.bridged(edges[0], grid.width), series.bridged(edges[1], grid.width))
        yield series.panel(title, unit, colour, values, lanes.names, edges, "GPUs", top)


def hosts(grid: Grid) -> Iterator[Panel]:
    """Yield what is known of the step on its nodes: the mean, and the first of a panel with its lowest and highest."""
    for title, unit, factor, lines in _HOST:
        known = [
            (found, label) for name, label in lines
            if (found := grid.hosts.known(name)) is not None and (name not in _ABOVE_0 or np.nanmax(found.most) > 0)
        ]  # fmt: skip
        if known:
            (first, label), *others = known
            more = [
                (text, colour, _mean(series.bridged(found.mean, grid.width)) * factor)
                for (found, text), colour in zip(others, _MORE, strict=False)
            ]  # fmt: skip
            if not others and len(lines) > 1 and label != "all":
                title = f"{title}: {label}"
            values = series.bridged(first.mean, grid.width) * factor
            yield _by_node(title, unit, values, grid.hosts.names, label, more)


def mounts(grid: Grid) -> Iterator[Panel]:
    """Yield for each file system how long an operation took, and what was read and written."""
    table = grid.step.table("io", ["time", "span", "node", "mount", "kind", "scope", "read", "write", "wait"])
    found = grids.spread(grid, table, ("mount", "kind", "scope", "node"), ("read", "write", "wait"))
    for (mount, kind, scope), rows in _grouped(found, 3, _MOUNTS_MOST):
        names, wait = grids.stacked(rows, "wait")
        if len(names):
            label = f"mean of the nodes, {kind}{', all that runs there' if scope == 'node' else ''}"
            yield _by_node(f"An operation of {mount} took", "ms", wait * 1e3, names, label, [], RED)
        yield from _pair(rows, f"Data of {mount}", (("read", "read"), ("write", "written")), "MB/s per node", 1e-6)


def ports(grid: Grid) -> Iterator[Panel]:
    """Yield for each kind of network what its ports moved, and what had to be sent again."""
    names = ("rx", "tx", "errors", "retries", "stalled")
    table = grid.step.table("net", ["time", "span", "node", "port", "kind", *names])
    found = grids.spread(grid, table, ("kind", "node", "port"), names)
    for (kind,), rows in _grouped(found, 1, _PORTS_MOST):
        yield from _pair(
            rows, f"Network, {kind}, of the node", (("rx", "received"), ("tx", "sent")), "MB/s per port", 1e-6
        )
        yield from _pair(rows, f"Faults of {kind} ports", (("retries", "sent again"), ("errors", "errors")), "1/s", 1.0)


def marks(grid: Grid) -> Iterator[Panel]:
    """Yield the figures that the application told most often."""
    table = grid.step.table("marks", ["time", "name", "value"])
    if not len(table):
        return
    codes, names = grids.coded(table["name"])
    value = table["value"].to_numpy().astype(float)
    place = np.searchsorted(grid.edges, table["time"].cast(pa.int64()).to_numpy() * 1000.0, "right") - 1
    told = np.bincount(codes[~np.isnan(value)], minlength=len(names))
    for code in [c for c in np.argsort(-told, kind="stable")[:_MARKS_MOST] if told[c] >= FEW]:
        mine = np.flatnonzero((codes == code) & ~np.isnan(value) & (place >= 0) & (place < grid.bins))
        count, total = (np.bincount(place[mine], w, grid.bins) for w in (None, value[mine]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            mean = series.bridged(np.where(count > 0, total / count, np.nan), grid.width)
        yield Panel(names[code], "", GREEN, mean, np.zeros((0, grid.bins)), [], [], None, "told by the application")


def _with_nvlink(lanes: Lanes) -> Lanes:
    tx, rx = (lanes.of.get(f"nvlink_{way}") for way in ("tx", "rx"))
    if tx is None or rx is None:
        return lanes
    both = grids.Series(*(np.fmax(a, b) for a, b in zip(vars(tx).values(), vars(rx).values(), strict=True)))
    return Lanes(lanes.names, lanes.of | {"nvlink": both})


def _grouped(
    found: dict[tuple[str, ...], Any], size: int, most: int
) -> Iterator[tuple[tuple[str, ...], dict[Any, Any]]]:
    """Yield what has the same first `size` keys, the largest first."""
    groups: dict[tuple[str, ...], dict[tuple[str, ...], Any]] = {}
    for key, values in found.items():
        groups.setdefault(key[:size], {})[key[size:]] = values
    ranked = sorted(groups.items(), key=lambda group: -len(group[1]))
    yield from ranked[:most]


def _pair(
    rows: dict[tuple[str, ...], Any], title: str, both: tuple[tuple[str, str], ...], unit: str, factor: float
) -> Iterator[Panel]:
    known = [(label, *grids.stacked(rows, name)) for name, label in both]
    known = [(label, names, values) for label, names, values in known if len(names) and np.nanmax(values) > 0]
    if known:
        (label, names, values), *others = known
        more = [(text, ORANGE, _mean(each) * factor) for text, _, each in others]
        yield _by_node(title, unit, values * factor, names, label, more)


def _by_node(
    title: str, unit: str, values: Array, names: list[str], label: str, more: list[Any], colour: str = BLUE
) -> Panel:
    edges = _extremes(values, values, 1.0) if len(values) > 1 else None
    bands = [("lowest to highest", *edges)] if edges else []
    rows = values if len(values) <= series.LINES_MAX else np.zeros((0, values.shape[1]))
    return Panel(title, unit, colour, _mean(values), rows, names, bands, None, label, more)


def _extremes(low: Array, high: Array, factor: float) -> tuple[Array, Array]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmin(low, axis=0).astype(float) * factor, np.nanmax(high, axis=0).astype(float) * factor


def _mean(values: Array) -> Array:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        result: Array = np.nanmean(values.astype(float), axis=0)
    return result
