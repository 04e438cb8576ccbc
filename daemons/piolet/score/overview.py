"""A data set in the size of a report: sums per GPU, and a timeline of at most 600 bins per GPU.

Nodes are read one after the other in chunks (two processes share large data sets), so memory does not grow with
the length of a step.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from piolet.samples.dataset import Dataset, Node
from piolet.score import ceilings, clock, saturation, witness
from piolet.score.counter import EnergyCounter
from piolet.score.peaks import Peaks, peaks_of
from piolet.score.phases import BINS_MAX
from piolet.score.saturation import NEEDED, Totals, Weights

Array = np.ndarray[Any, np.dtype[Any]]

SCORES = ("s", "c", "m", "n", "weighted")
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
    """The whole step. Arrays have one entry per GPU; `lines` has (GPU, bin) per quantity, NaN where nothing is.

    energy       J: what was added to the counter; `drawn` is the integral of the power in the same time, `restarts` how
                 often the counter began again
    counted      seconds between the first and the last reading of that counter
    told         seconds in which utilisation was told
    denied       seconds whose profiling counters are not believed, since utilisation contradicts them
    doubtful     links that were missing though they may have moved bytes, of all nodes
    nics         the nodes' network interfaces with their line rates, B/s; `nic` is the highest share of it in a bin
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
    doubtful: list[str] = field(default_factory=list)
    nics: dict[str, float] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    weights: Weights = field(default_factory=Weights)

    @property
    def seconds(self) -> float:
        """How long the step was."""
        return (self.end - self.start) / 1e9

    @property
    def bin_seconds(self) -> float:
        """What a bin of the timeline covers."""
        bins: int = next(iter(self.lines.values())).shape[1]
        return self.seconds / max(1, bins)

    def score(self, which: Any = None) -> saturation.Score:
        """Return the score of all GPUs, or of some."""
        expected = self.expected if which is None else self.expected[which]
        mean = float(expected.mean()) if len(expected) else 0.0
        return saturation.summarise(self.totals, mean, which)

    def per_gpu(self) -> Array:
        """Return the saturation of each GPU, NaN where nothing is covered."""
        covered = self.totals.covered
        return _ratio(self.totals.s, covered)


def overview(
    data: Dataset, calibrations: Mapping[str, Peaks] | None = None, weights: Weights | None = None
) -> Overview:
    """Read a data set once and return its overview."""
    span = max(1, data.end - data.start)
    shortest = min((node.facts.header["period"] for node in data.nodes), default=1.0)
    bins = max(1, min(BINS_MAX, math.ceil(span / 1e9 / max(shortest, 1e-3) / 2)))
    weights = weights or Weights()
    work = [(node, data.start, span, bins, dict(calibrations or {}), weights) for node in data.nodes]
    rows = sum(node.facts.quality.get("ticks", 0) * len(node.facts.devices) for node in data.nodes)
    if len(work) > 1 and rows > _PARALLEL_FROM and (os.cpu_count() or 1) > 1:
        with concurrent.futures.ProcessPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            parts = list(pool.map(_node, work, chunksize=max(1, len(work) // 64)))
    else:
        parts = [_node(item) for item in work]
    whole = _merge(parts, data)
    whole.weights = weights
    return whole


def _node(item: tuple[Node, int, int, int, dict[str, Peaks], Weights]) -> Overview:
    """Return the overview of one node."""
    node, start, span, bins, calibrations, weights = item
    facts = node.facts
    gpus = [
        Gpu(
            *(node.name, i, d["uuid"], d["name"], d["memory"], d["power_limit"]),
            peaks_of(d["name"], calibrations, d.get("pcie", 0.0)),
            clock_sm_max=d.get("clock_sm_max") or math.nan,
            clock_memory_max=d.get("clock_memory_max") or math.nan,
            power_limit_default=d.get("power_limit_default", 0.0),
        )
        for i, d in enumerate(facts.devices)
    ]
    sums = _Sums(len(gpus), bins, ceilings.of(node), weights)
    for chunk in node.chunks((*_COLUMNS, *_SPARSE)):
        sums.add(chunk, gpus, start, span)
    part = sums.result(gpus, start, start + span)
    # Until the step's end: a GPU of a node that ended earlier stood idle, and of one that was lost nothing is known.
    part.expected = np.full(len(gpus), (start + span - facts.start) / 1e9)
    part.host = _host(node, start, span, bins)
    part.nodes = [node.name]
    part.doubtful = sorted(sums.ceilings.doubtful)
    part.nics = {f"{node.name} {name}": rate for name, rate in sums.ceilings.nics.items()}
    part.others = [node.name] if sums.ceilings.is_shared else []
    return part


class _Sums:
    """What is added up while a node is read."""

    def __init__(self, gpus: int, bins: int, around: ceilings.Ceilings, weights: Weights) -> None:
        self.gpus, self.bins, self.rows = gpus, bins, 0
        self.ceilings, self.weights = around, weights
        self.held = {name: clock.Held(gpus) for name in ("clock_sm", "clock_memory", "clock_events")}
        self.totals = Totals.zero(gpus)
        self.mean = {name: np.zeros((2, gpus)) for name in (*MEANS, "clock_sm")}
        self.peak = {name: np.full(gpus, np.nan) for name in ("memory_used", "temperature", "power")}
        self.energy = [EnergyCounter() for _ in range(gpus)]
        self.denied = np.zeros(gpus)
        self.events = {name: np.zeros(gpus) for name in (*EVENTS, "known")}
        self.xids: list[set[int]] = [set() for _ in range(gpus)]
        self.lines = {name: np.zeros((2, gpus * bins)) for name in (*SCORES, *DRAWN)}

    def add(self, chunk: dict[str, Array], gpus: list[Gpu], start: int, span: int) -> None:
        gpu = chunk["device"].astype(np.int64)
        seconds = chunk["span"].astype(np.float64)
        self.rows += len(gpu)
        lies = witness.contradicted(chunk, seconds, gpu, self.gpus)
        if lies.any():
            self.denied += np.bincount(gpu[lies], weights=seconds[lies], minlength=self.gpus)
            # What is not believed is missing, in every figure.
            doubted = (*NEEDED, "occupancy", "integer", "tensor_half")
            chunk = chunk | {name: np.where(lies, np.nan, chunk[name]) for name in doubted}
        place = gpu * self.bins + np.clip(
            ((chunk["end"] - seconds * 5e8 - start) * (self.bins / span)).astype(np.int64), 0, self.bins - 1
        )
        models = {g.peaks for g in gpus}
        full = chunk | self._besides(chunk, gpus, gpu)
        more = (self.ceilings.doubtful, self.weights)
        samples = (
            saturation.score(full, next(iter(models)), *more)
            if len(models) == 1
            else self._mixed([saturation.score(full, g.peaks, *more) for g in gpus], gpu)
        )
        self.totals = self.totals + saturation.totals(samples, seconds, gpu, self.gpus, full["clock_events"])
        known = np.where(np.isnan(samples.s), 0, seconds)
        weights = np.bincount(place, weights=known, minlength=self.gpus * self.bins)
        for name in SCORES:
            values = np.nan_to_num(getattr(samples, name))
            self.lines[name][0] += np.bincount(place, weights=values * known, minlength=self.gpus * self.bins)
            self.lines[name][1] += weights
        nvlink = np.fmax(chunk["nvlink_tx"], chunk["nvlink_rx"])
        for name in DRAWN:
            self._line(name, nvlink if name == "nvlink" else chunk[name], place, seconds)
        for name, sums in self.mean.items():
            self._weigh(sums, chunk[name], gpu, seconds, self.gpus)
        for name, best in self.peak.items():
            values = chunk[name]
            for i in range(self.gpus):  # few: np.fmax.at takes a hundred times as long
                mine = values[gpu == i]
                if len(mine):
                    best[i] = np.fmax(best[i], np.fmax.reduce(mine))
        self._rare(chunk, gpu, seconds)

    def _besides(self, chunk: dict[str, Array], gpus: list[Gpu], gpu: Array) -> dict[str, Array]:
        """Return clocks for every sample, their shares of the highest, and what the network did meanwhile."""
        held = {name: each.fill(chunk[name], chunk["end"], gpu) for name, each in self.held.items()}
        most = (np.array([getattr(g, name) for g in gpus]) for name in ("clock_sm_max", "clock_memory_max"))
        return held | clock.shares(held, gpu, *most) | self.ceilings.network(chunk["end"])

    @staticmethod
    def _mixed(parts: list[saturation.Samples], gpu: Array) -> saturation.Samples:
        """Return of a node with GPUs of different models each by its own peaks."""
        fields = [f.name for f in dataclasses.fields(saturation.Samples)]
        rows = np.arange(len(gpu))
        return saturation.Samples(*(np.stack([getattr(p, f) for p in parts])[gpu, rows] for f in fields))

    def _line(self, name: str, values: Array, place: Array, seconds: Array) -> None:
        self._weigh(self.lines[name], values, place, seconds, self.gpus * self.bins)

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

    def result(self, gpus: list[Gpu], start: int, end: int) -> Overview:
        means = {name: _ratio(sums[0], sums[1]) for name, sums in self.mean.items()}
        lines = {
            name: _ratio(sums[0], sums[1]).astype(np.float32).reshape(self.gpus, self.bins)
            for name, sums in self.lines.items()
        }
        events = {name: _ratio(self.events[name], self.events["known"]) for name in EVENTS}
        energy, drawn = (np.array([getattr(c, name) for c in self.energy]) for name in ("joules", "by_power"))
        restarts = np.array([counter.restarts for counter in self.energy], int)
        xids = [sorted(codes) for codes in self.xids]
        mean_clock = means.pop("clock_sm")
        return Overview(
            gpus=gpus,
            totals=self.totals,
            means=means,
            peak=self.peak,
            energy=energy,
            events=events,
            xids=xids,
            clock=mean_clock,
            lines=lines,
            start=start,
            end=end,
            expected=np.zeros(self.gpus),
            drawn=drawn,
            restarts=restarts,
            counted=np.array([counter.seconds for counter in self.energy]),
            told=self.mean["utilisation"][1],
            denied=self.denied,
            rows=self.rows,
        )


def _ratio(sums: Array, weights: Array) -> Array:
    result: Array = np.divide(sums, weights, out=np.full(sums.shape, np.nan), where=weights > 0)
    return result


def _host(node: Node, start: int, span: int, bins: int) -> dict[str, Array]:
    """Return the node's host quantities as timelines, shape (1, bins)."""
    names = [str(name) for name in node.facts.header["host_columns"]]
    sums = {name: np.zeros((2, bins)) for name in names}
    for chunk in node.chunks(names, host=True):
        middle = chunk["end"] - chunk["span"].astype(np.float64) * 5e8 - start
        place = np.clip((middle * (bins / span)).astype(np.int64), 0, bins - 1)
        for name in names:
            _Sums._weigh(sums[name], chunk[name], place, chunk["span"].astype(np.float64), bins)
    return {name: _ratio(pair[0], pair[1])[None, :].astype(np.float32) for name, pair in sums.items()}


def _merge(parts: list[Overview], data: Dataset) -> Overview:
    def joined(name: str) -> dict[str, Array]:
        return {key: np.concatenate([getattr(p, name)[key] for p in parts]) for key in getattr(parts[0], name)}

    fields = [f.name for f in dataclasses.fields(Totals)]
    return Overview(
        gpus=[gpu for part in parts for gpu in part.gpus],
        totals=Totals(*(np.concatenate([getattr(part.totals, name) for part in parts]) for name in fields)),
        means=joined("means"),
        peak=joined("peak"),
        energy=np.concatenate([part.energy for part in parts]),
        events=joined("events"),
        xids=[codes for part in parts for codes in part.xids],
        clock=np.concatenate([part.clock for part in parts]),
        lines=joined("lines"),
        start=data.start,
        end=data.end,
        **{
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in ("expected", "drawn", "restarts", "counted", "told", "denied")
        },
        rows=sum(part.rows for part in parts),
        host=joined("host"),
        nodes=[name for part in parts for name in part.nodes],
        doubtful=sorted({link for part in parts for link in part.doubtful}),
        nics={name: rate for part in parts for name, rate in part.nics.items()},
        others=[name for part in parts for name in part.others],
    )
