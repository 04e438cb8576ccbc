"""What a step does just now, from the last samples of its data set's journals: for `piolet top`.

Only the end of each node's journal is read, whatever its length. A node whose journal has become a Parquet file has
ended. What a sample does not tell is NaN, and no zero.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from piolet.base.errors import ScoreError
from piolet.samples import journal
from piolet.samples.dataset import HOST_PARQUET, PARQUET
from piolet.score import saturation
from piolet.score.peaks import Peaks, peaks_of

WINDOW_S = 5.0
_TAIL = 256 << 10
_NODES_MOST = 4096
_GPU = ("memory_used", "power", "temperature", "utilisation", "engine")
_HOST = ("cpu", "memory", "net_rx", "net_tx", "read", "write", "io_pressure")

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class GpuNow:
    """A GPU over the last seconds: means, NaN where nothing was told. Shares 0..1, W, degC."""

    saturation: float
    limit: str
    utilisation: float
    memory: float
    power: float
    temperature: float


@dataclass(frozen=True)
class NodeNow:
    """A node; `age` is how old its last sample is, in seconds: silent above `stale`; `host` has means by name."""

    name: str
    ended: bool
    age: float
    gpus: tuple[GpuNow, ...] = ()
    host: dict[str, float] = field(default_factory=dict)
    simulated: str = ""
    stale: float = 10.0


def now(directory: Path, calibrations: Mapping[str, Peaks] | None = None, clock: float | None = None) -> list[NodeNow]:
    """Return what the nodes of a data set do. Raises ScoreError: there are no samples."""
    clock = time.time() if clock is None else clock
    journals = {path.stem: path for path in sorted(directory.glob(f"*{journal.SUFFIX}"))[:_NODES_MOST]}
    ended = {path.stem for path in directory.glob(f"*{PARQUET}") if not path.name.endswith(HOST_PARQUET)}
    found = [NodeNow(name, True, float("nan")) for name in ended - journals.keys()]
    for name, path in journals.items():
        try:
            one = _node(name, path, calibrations, clock)
        except ScoreError:
            if path.exists():
                raise
            one = NodeNow(name, True, float("nan"))
        found += [one] if one is not None else []
    if not found:
        raise ScoreError(f"{directory} holds no samples", "a step that is sampled was started with --score")
    return sorted(found, key=lambda one: (len(one.name), one.name))


def _node(name: str, path: Path, calibrations: Mapping[str, Peaks] | None, clock: float) -> NodeNow | None:
    header: dict[str, Any] | None = None
    parts: dict[str, list[Array]] = {"G": [], "N": []}
    ended = False
    try:
        for frame in journal.tail(str(path), _TAIL):
            if frame.kind == "H":
                said = frame.json()
                if said.get("version") != journal.VERSION:
                    raise ScoreError(f"{path} is of version {said.get('version')}, which is not known here")
                if header is not None and said["devices"] != header["devices"]:
                    parts = {"G": [], "N": []}  # of another sampler, which counts its devices anew
                header = said
            elif frame.kind in parts and header is not None:
                columns = header["gpu_columns" if frame.kind == "G" else "host_columns"]
                parts[frame.kind].append(np.frombuffer(frame.body, np.dtype(journal.record_type(columns))))
            elif frame.kind == "E":
                ended = ended or frame.json().get("event") == "end"
        if header is None:
            return None
        gpus, hosts = (_joined(parts[kind]) for kind in ("G", "N"))
        last = max((int(part["end"].max()) for part in (gpus, hosts) if part is not None), default=None)
        age = float("nan") if last is None else max(0.0, clock - (last + header["origin"]) / 1e9)
        simulated = str(header.get("simulated") or "")
        devices = header["devices"]
        shown = [_gpu(gpus, at, device, last or 0, calibrations) for at, device in enumerate(devices)]
        return NodeNow(name, ended, age, tuple(shown), _host(hosts, last or 0), simulated)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ScoreError(f"{path} is no journal that can be read: {str(error)[:100]}") from None


def _joined(parts: list[Array]) -> Array | None:
    same = [part for part in parts if part.dtype == parts[-1].dtype and len(part)]
    return np.concatenate(same) if same else None


def _gpu(
    rows: Array | None, at: int, device: Mapping[str, Any], last: int, calibrations: Mapping[str, Peaks] | None
) -> GpuNow:
    nothing = float("nan")
    own = rows[(rows["device"] == at) & (rows["end"] >= last - WINDOW_S * 1e9)] if rows is not None else None
    if own is None or not len(own):
        return GpuNow(nothing, "", nothing, nothing, nothing, nothing)
    names = own.dtype.names or ()
    values = {name: own[name].astype(np.float32) for name in names if name not in ("device", "span", "end")}
    return of_samples(values, own["span"], device, calibrations)


def of_samples(
    values: Mapping[str, Array], weights: Array, device: Mapping[str, Any], calibrations: Mapping[str, Peaks] | None
) -> GpuNow:
    """Return a GPU over some samples: values by quantity, and the seconds that each covers."""
    nothing, weights = float("nan"), weights.astype(np.float64)
    peaks = peaks_of(str(device.get("name", "")), calibrations, float(device.get("pcie") or 0.0))
    scored = saturation.score(values, peaks)
    mean = {name: _mean(values[name], weights) if name in values else nothing for name in _GPU}
    parts = {what: _mean(part, weights) for what, part in
             (("compute", scored.c), ("memory", scored.m), ("network", scored.n))}  # fmt: skip
    known = {what: part for what, part in parts.items() if not np.isnan(part)}
    s = _mean(scored.s, weights)
    limit = max(known, key=lambda what: known[what]) if known and s >= saturation.BUSY else ""
    total = float(device.get("memory") or 0.0)
    memory = mean["memory_used"] / total if total else nothing
    return GpuNow(s, limit, mean["utilisation"], memory, mean["power"], mean["temperature"])


def _host(rows: Array | None, last: int) -> dict[str, float]:
    if rows is None:
        return {}
    own = rows[rows["end"] >= last - WINDOW_S * 1e9]
    found = {name: _mean(own[name], own["span"]) for name in _HOST if name in (own.dtype.names or ())}
    return {name: value for name, value in found.items() if not np.isnan(value)}


def _mean(values: Array, weights: Array) -> float:
    good = ~np.isnan(values)
    total = float(weights[good].sum())
    return float((values[good] * weights[good]).sum()) / total if total > 0 else float("nan")
