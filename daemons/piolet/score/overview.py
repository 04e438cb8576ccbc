"""A data set in the size of a report: sums per GPU, and timelines of at most 600 bins.

A node leaves its own sums behind (rollup.py), and these are what is read; where there are none, its samples are. Nodes
are read one after the other (two processes share large data sets), so memory does not grow with the length of a step.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import json
import math
import os
import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from piolet.samples.dataset import Dataset, Node
from piolet.score import ceilings, clock, rollup, saturation, witness
from piolet.score.counter import EnergyCounter
from piolet.score.peaks import Peaks, peaks_of
from piolet.score.saturation import NEEDED, Totals, Weights
from piolet.score.timelines import Grid, Timelines, width_of

Array = np.ndarray[Any, np.dtype[Any]]

SCORES = ("s", "c", "m", "n", "rated")
DRAWN = ("utilisation", "sm", "occupancy", "dram", "tensor", "nvlink", "engine", "power", "memory_used")
_COLUMNS = (*NEEDED, "occupancy", "utilisation", "integer", "tensor_half", "power", "memory_used")
_SPARSE = ("energy", "temperature", "clock_sm", "clock_memory", "clock_events", "xid")
MEANS = (
    *("utilisation", "engine", "sm", "occupancy", "tensor", "tensor_half", "fp64", "fp32", "fp16", "integer", "dram"),
    *("pcie_tx", "pcie_rx", "nvlink_tx", "nvlink_rx", "c2c_tx", "c2c_rx", "power"),
)
# nvmlClocksEventReasons: software power cap; hardware slowdown, software and hardware thermal; hardware power brake.
EVENTS = {"power": 0x4 | 0x80, "heat": 0x20 | 0x40, "hardware": 0x8}
_PARALLEL_FROM = 4_000_000
ROWS_MAX = 1024  # GPUs with timelines of their own; of more than that, nodes have them


@dataclass(frozen=True)
class Gpu:
    """One GPU of the step."""

    node: str
    index: int
    uuid: str
    model: str
    memory: int
    power_limit: float
    peaks: Peaks
    clock_sm_max: float = math.nan
    clock_memory_max: float = math.nan
    power_limit_default: float = 0.0


@dataclass
class Overview:
    """The whole step. Arrays have one entry per GPU; `lines` has (row, bin) per quantity, NaN where nothing is.

    lanes        what the rows of `lines` are: "node:index", or with more than ROWS_MAX GPUs nodes, whose mean they are;
                 empty where there is one row for all of them
    low, high    the lowest and the highest sample of a bin, of all GPUs, by quantity
    host         (1, bin) by quantity: the mean of all nodes
    worst        the lowest saturation of a node's GPUs, (node, bin)
    origin       when the first bin begins, in seconds since `start`: at most 0
    bin_seconds  what a bin covers
    remade       nodes whose sums had to be made of samples that have been thinned
    energy       J: what was added to the counter; `drawn` is the integral of the power in the same time, `restarts` how
                 often the counter began again
    counted      seconds between the first and the last reading of that counter
    told         seconds in which utilisation was told
    denied       seconds whose profiling counters are not believed, since utilisation contradicts them
    doubtful     links that were missing though they may have moved bytes, of all nodes
    nics         the nodes' network interfaces with their line rates, B/s
    others       nodes on which the step had some of the GPUs only, so that the network may have been another's
    weights      of the aggregated picture
    """

    gpus: list[Gpu]
    totals: Totals
    means: dict[str, Array]
    peak: dict[str, Array]
    energy: Array
    events: dict[str, Array]
    xids: list[list[int]]
    clock: Array
    lines: dict[str, Array]
    start: int
    end: int
    expected: Array
    drawn: Array
    restarts: Array
    counted: Array
    told: Array
    denied: Array
    rows: int = 0
    host: dict[str, Array] = field(default_factory=dict)
    nodes: list[str] = field(default_factory=list)
    low: dict[str, Array] = field(default_factory=dict)
    high: dict[str, Array] = field(default_factory=dict)
    worst: Array = field(default_factory=lambda: np.zeros((0, 0)))
    lanes: list[str] = field(default_factory=list)
    origin: float = 0.0
    bin_seconds: float = 0.0
    remade: list[str] = field(default_factory=list)
    doubtful: list[str] = field(default_factory=list)
    nics: dict[str, float] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    weights: Weights = field(default_factory=Weights)

    @property
    def seconds(self) -> float:
        """How long the step was."""
        return (self.end - self.start) / 1e9

    def score(self, which: Any = None) -> saturation.Score:
        """Return the score of all GPUs, or of some."""
        expected = self.expected if which is None else self.expected[which]
        mean = float(expected.mean()) if len(expected) else 0.0
        return saturation.summarise(self.totals, mean, which)

    def timeline(self, name: str, which: Array) -> Array:
        """Return the mean of some GPUs over time, (bin); where rows are nodes, of the nodes that have one of these."""
        rows = self.lines[name]
        if not self.lanes:
            which = np.ones(len(rows), bool)
        elif len(rows) != len(self.gpus):
            chosen = {gpu.node for gpu, picked in zip(self.gpus, which, strict=True) if picked}
            which = np.array([lane in chosen for lane in self.lanes], bool)
        mean: Array = np.nanmean(rows[which], axis=0)
        return mean

    def aggregate(self) -> Array:
        """Return the aggregate of compute, memory and communication by the weights, (bin): the mean of all rows'."""
        rows = self.weights.aggregate(*(self.lines[name].astype(float) for name in ("c", "m", "n")))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a mean of nothing is NaN
            mean: Array = np.nanmean(rows, axis=0)
        return mean

    def per_gpu(self) -> Array:
        """Return the saturation of each GPU, NaN where nothing is covered."""
        covered = self.totals.covered
        return _ratio(self.totals.s, covered)


def overview(data: Dataset, calibrations: Mapping[str, Peaks] | None = None, detail: bool = True) -> Overview:
    """Read a data set once and return its overview; with more than ROWS_MAX GPUs, and without `detail`, its timelines
    are of all of them together."""
    devices = sum(len(node.facts.devices) for node in data.nodes)
    how = "each" if devices <= ROWS_MAX else "node" if detail else "all"
    work = [(node, dict(calibrations or {}), how != "all") for node in data.nodes]
    unread = [node for node in data.nodes if not node.is_summed]
    rows = sum(node.facts.quality.get("ticks", 0) * len(node.facts.devices) for node in unread)
    if len(unread) > 1 and rows > _PARALLEL_FROM and (os.cpu_count() or 1) > 1:
        with concurrent.futures.ProcessPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            return _merge(pool.map(_node, work, chunksize=max(1, len(work) // 64)), data, how)
    return _merge(map(_node, work), data, how)


def summary_of(node: Node, calibrations: Mapping[str, Peaks] | None = None) -> bytes:
    """Return the sums of all samples of a node, which `Node.summary` then has."""
    gpus = _gpus(node, dict(calibrations or {}))
    return rollup.pack(_read(node, gpus), _key(gpus))


def _gpus(node: Node, calibrations: dict[str, Peaks]) -> list[Gpu]:
    return [
        Gpu(
            *(node.name, i, d["uuid"], d["name"], d["memory"], d["power_limit"]),
            peaks_of(d["name"], calibrations, d.get("pcie", 0.0)),
            clock_sm_max=d.get("clock_sm_max") or math.nan,
            clock_memory_max=d.get("clock_memory_max") or math.nan,
            power_limit_default=d.get("power_limit_default", 0.0),
        )
        for i, d in enumerate(node.facts.devices)
    ]


def _key(gpus: list[Gpu]) -> str:
    """Return what sums are made with, as text."""
    return "\n".join(_peaks_as_text(gpu.peaks) for gpu in gpus)


@functools.cache
def _peaks_as_text(peaks: Peaks) -> str:
    return json.dumps(dataclasses.asdict(peaks))


def _read(node: Node, gpus: list[Gpu], detail: bool = True) -> _Sums:
    """Return a node's sums: those that it left, and what came after them; if these are of other peaks, new ones."""
    hosts = [str(name) for name in node.facts.header["host_columns"]]
    begun = node.facts.start, float(node.facts.header["period"])
    sums = _Sums(gpus, *begun, hosts)
    found = bool(node.summary) and rollup.unpack(node.summary, sums, _key(gpus), detail or not node.is_summed)
    if not found:
        sums = _Sums(gpus, *begun, hosts)
    if not (found and node.is_summed):
        after, around = node.summed if found else 0, ceilings.of(node)
        network = ceilings.Network(node) if around.nics else None
        for chunk in node.chunks((*_COLUMNS, *_SPARSE), after=after):
            beside = network.at(chunk["end"], around.is_shared) if network else {}
            sums.add(chunk | beside, gpus, around.doubtful)
        for chunk in node.chunks(hosts, host=True, after=after):
            sums.add_host(chunk)
        sums.remade |= int(not found and node.facts.thinned > 0)
    return sums


def _node(item: tuple[Node, dict[str, Peaks], bool]) -> tuple[list[Gpu], _Sums]:
    """Return the GPUs and sums of one node."""
    node, calibrations, detail = item
    gpus = _gpus(node, calibrations)
    return gpus, _read(node, gpus, detail)


class _Sums:
    """What is added up while a node is read."""

    def __init__(self, devices: list[Gpu], start: int, period: float, hosts: list[str]) -> None:
        gpus = len(devices)
        self.gpus, self.rows = gpus, 0
        self.remade = 0  # 1: made of samples that have been thinned
        self.totals = Totals.zero(gpus)
        self.mean = {name: np.zeros((2, gpus)) for name in (*MEANS, "clock_sm")}
        self.peak = {name: np.full(gpus, np.nan) for name in ("memory_used", "temperature", "power")}
        self.energy = [EnergyCounter() for _ in range(gpus)]
        self.denied = np.zeros(gpus)
        self.events = {name: np.zeros(gpus) for name in (*EVENTS, "known")}
        self.xids: list[set[int]] = [set() for _ in range(gpus)]
        self.lines = Timelines((*SCORES, *DRAWN), gpus, start, period, apart=True)
        self.host = Timelines(hosts, 1, start, period)
        self.held = {name: clock.Held(gpus) for name in ("clock_sm", "clock_memory", "clock_events")}

    def add(self, chunk: dict[str, Array], gpus: list[Gpu], doubtful: Collection[str] = ()) -> None:
        """Add samples of the node's GPUs; `doubtful` as saturation.score has it."""
        if not gpus:
            return
        gpu = chunk["device"].astype(np.int64)
        seconds = chunk["span"].astype(np.float64)
        self.rows += len(gpu)
        lies = witness.contradicted(chunk, seconds, gpu, self.gpus)
        if lies.any():
            self.denied += np.bincount(gpu[lies], weights=seconds[lies], minlength=self.gpus)
            # What is not believed is missing, in every figure.
            doubted = (*NEEDED, "occupancy", "integer", "tensor_half")
            chunk = chunk | {name: np.where(lies, np.nan, chunk[name]) for name in doubted}
        places = self.lines.places(chunk["end"] - (seconds * 5e8).astype(np.int64))
        models = {g.peaks for g in gpus}
        read = clock.read(chunk)
        full = chunk | self._clocks(read, chunk["end"], gpus, gpu)
        samples = (
            saturation.score(full, next(iter(models)), doubtful)
            if len(models) == 1
            else self._mixed([saturation.score(full, g.peaks, doubtful) for g in gpus], gpu)
        )
        self.totals = self.totals + saturation.totals(samples, seconds, gpu, self.gpus, full["clock_events"])
        unknown = np.isnan(samples.s)
        for name in SCORES:
            # Where no clock is told, nothing is known to be lost to it.
            told = np.fmin(samples.rated, samples.s) if name == "rated" else getattr(samples, name)
            values = np.where(unknown, np.nan, np.nan_to_num(told))
            self.lines.add(name, values, gpu, places, seconds)
        nvlink = np.fmax(chunk["nvlink_tx"], chunk["nvlink_rx"])
        for name in DRAWN:
            self.lines.add(name, nvlink if name == "nvlink" else chunk[name], gpu, places, seconds)
        for name, sums in self.mean.items():
            self._weigh(sums, read.get(name, chunk[name]), gpu, seconds, self.gpus)
        for name, best in self.peak.items():
            values = chunk[name]
            for i in range(self.gpus):  # few: np.fmax.at takes a hundred times as long
                mine = values[gpu == i]
                if len(mine):
                    best[i] = np.fmax(best[i], np.fmax.reduce(mine))
        self._rare(chunk, gpu, seconds)

    def _clocks(self, read: dict[str, Array], end: Array, gpus: list[Gpu], gpu: Array) -> dict[str, Array]:
        """Return for every sample the clocks, their shares of the highest, and why they are held back."""
        held = {name: each.fill(read[name], end, gpu) for name, each in self.held.items()}
        most = (np.array([getattr(g, name) for g in gpus]) for name in ("clock_sm_max", "clock_memory_max"))
        return held | clock.shares(held, gpu, *most)

    @staticmethod
    def _mixed(parts: list[saturation.Samples], gpu: Array) -> saturation.Samples:
        """Return of a node with GPUs of different models each by its own peaks."""
        fields = [f.name for f in dataclasses.fields(saturation.Samples)]
        rows = np.arange(len(gpu))
        return saturation.Samples(*(np.stack([getattr(p, f) for p in parts])[gpu, rows] for f in fields))

    def add_host(self, chunk: dict[str, Array]) -> None:
        """Add samples of the host."""
        seconds = chunk["span"].astype(np.float64)
        places = self.host.places(chunk["end"] - (seconds * 5e8).astype(np.int64))
        for name in self.host.names:
            self.host.add(name, chunk[name], np.zeros(len(seconds), np.int64), places, seconds)

    @staticmethod
    def _weigh(sums: Array, values: Array, place: Array, seconds: Array, size: int) -> None:
        weights = np.where(np.isnan(values), 0, seconds)
        if weights.any():
            sums[0] += np.bincount(place, weights=np.nan_to_num(values) * weights, minlength=size)
            sums[1] += np.bincount(place, weights=weights, minlength=size)

    def _rare(self, chunk: dict[str, Array], gpu: Array, seconds: Array) -> None:
        events, xid = chunk["clock_events"], chunk["xid"]
        for i, counter in enumerate(self.energy):
            mine = np.flatnonzero(gpu == i)
            counter.add(chunk["end"][mine], seconds[mine], chunk["energy"][mine], chunk["power"][mine])
        told = np.flatnonzero(~np.isnan(events))
        if len(told):
            mask = events[told].astype(np.int64)
            self.events["known"] += np.bincount(gpu[told], minlength=self.gpus)
            for name, bits in EVENTS.items():
                self.events[name] += np.bincount(gpu[told], weights=(mask & bits) != 0, minlength=self.gpus)
        for row in np.flatnonzero(np.nan_to_num(xid) > 0):
            self.xids[gpu[row]].add(int(xid[row]))


def _ratio(sums: Array, weights: Array) -> Array:
    result: Array = np.divide(sums, weights, out=np.full(sums.shape, np.nan), where=weights > 0)
    return result


def _merge(parts: Iterable[tuple[list[Gpu], _Sums]], data: Dataset, how: str) -> Overview:
    """Put the nodes' sums together, each as it comes."""
    shortest = min((float(node.facts.header["period"]) for node in data.nodes), default=1.0)
    start, end = data.start, data.end
    devices = [len(node.facts.devices) for node in data.nodes]
    rows = {"each": sum(devices), "node": sum(map(bool, devices)), "all": 0}
    span = width_of(start, end, shortest), start, end
    names = dict.fromkeys(str(name) for node in data.nodes for name in node.facts.header["host_columns"])
    grid, hosts = Grid((*SCORES, *DRAWN), rows[how], *span), Grid(list(names), 0, *span)
    gpus: list[Gpu] = []
    sums: list[_Sums] = []
    remade, lanes, expected = [], [], []
    around = {node.name: ceilings.of(node) for node in data.nodes}
    for node, (own, part) in zip(data.nodes, parts, strict=True):
        gpus += own
        # Until the step's end: a GPU of a node that ended earlier stood idle; of one that was lost nothing is known.
        expected += [(end - node.facts.start) / 1e9] * len(own)
        remade += [node.name] if part.remade else []
        lanes += {"each": [f"{gpu.node}:{gpu.index}" for gpu in own], "node": [node.name] if own else [], "all": []}[
            how
        ]
        grid.take(part.lines, how)
        hosts.take(part.host, "all")
        part.lines = part.host = None  # type: ignore[assignment]
        sums.append(part)

    def joined(name: str) -> dict[str, Array]:
        return {key: np.concatenate([getattr(p, name)[key] for p in sums]) for key in getattr(sums[0], name)}

    def counted(name: str) -> Array:
        return np.array([getattr(counter, name) for part in sums for counter in part.energy], float)

    (low, high), (lowest, highest) = grid.edges(), hosts.edges()
    means = {
        key: _ratio(*(np.concatenate([part.mean[key][i] for part in sums]) for i in (0, 1))) for key in sums[0].mean
    }
    events = joined("events")
    fields = [f.name for f in dataclasses.fields(Totals)]
    return Overview(
        gpus=gpus,
        totals=Totals(*(np.concatenate([getattr(part.totals, name) for part in sums]) for name in fields)),
        clock=means.pop("clock_sm"),
        means=means,
        peak=joined("peak"),
        energy=counted("joules"),
        events={name: _ratio(events[name], events["known"]) for name in EVENTS},
        xids=[sorted(codes) for part in sums for codes in part.xids],
        lines=grid.lines(),
        start=start,
        end=end,
        expected=np.array(expected, float),
        drawn=counted("by_power"),
        restarts=counted("restarts").astype(int),
        counted=counted("seconds"),
        told=np.concatenate([part.mean["utilisation"][1] for part in sums]),
        denied=np.concatenate([part.denied for part in sums]),
        rows=sum(part.rows for part in sums),
        host=hosts.lines(),
        nodes=[node.name for node in data.nodes],
        low=low | lowest,
        high=high | highest,
        worst=grid.worst(),
        lanes=lanes,
        origin=(grid.first * grid.width - start) / 1e9,
        bin_seconds=grid.width / 1e9,
        remade=remade,
        doubtful=sorted({link for each in around.values() for link in each.doubtful}),
        nics={f"{node} {name}": rate for node, each in around.items() for name, rate in each.nics.items()},
        others=[node for node, each in around.items() if each.is_shared],
    )
