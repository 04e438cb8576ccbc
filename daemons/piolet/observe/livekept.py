"""What a step does just now, from what its nodes told the central service last: of every step, scored or not.

Figures are those that nodes record of all steps: means over ten seconds, half a minute old at most while all is well.
What a node does not tell is NaN, and no zero; and it is said why there is no saturation where there is none.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from piolet.base.hostlist import compress
from piolet.observe.live import GpuNow, NodeNow, of_samples
from piolet.score.peaks import Peaks

STALE_S = 90.0  # nodes send every 30 s, and what they send is up to 10 s old
_HOST = ("cpu", "memory", "net_rx", "net_tx", "read", "write", "io_pressure")
_REASONS_MOST = 3


def nodes(said: Mapping[str, Any], calibrations: Mapping[str, Peaks] | None = None) -> tuple[list[NodeNow], list[str]]:
    """Return the nodes of an answer of the service, and what is to be said of its figures.

    said    by node: age (s), ended, span, gpu and host (tables of a frame), devices, sources, simulated
    """
    found: list[NodeNow] = []
    why: Counter[str] = Counter()
    without: list[str] = []
    for name, one in said.items():
        if not isinstance(one, Mapping):
            continue
        node = _node(name, one, calibrations)
        found.append(node)
        if node.gpus and not node.ended and all(math.isnan(gpu.saturation) for gpu in node.gpus):
            without.append(name)
            why.update(_why_not(one))
    told = []
    ages = [node.age for node in found if not math.isnan(node.age) and not node.ended]
    if ages:
        old = f"{min(ages):.0f}" if max(ages) - min(ages) < 1 else f"{min(ages):.0f} to {max(ages):.0f}"
        told.append(f"means over some 10 s, {old} s ago; with srun --score they are of the last five seconds")
    if without:
        reasons = "; ".join(text for text, _ in why.most_common(_REASONS_MOST))
        told.append(
            f"u: utilisation; {compress(sorted(without))} told no saturation{f': {reasons}' if reasons else ''}"
        )
    return sorted(found, key=lambda one: (len(one.name), one.name)), told


def _node(name: str, said: Mapping[str, Any], calibrations: Mapping[str, Peaks] | None) -> NodeNow:
    nothing = float("nan")
    devices = said.get("devices")
    by_uuid = {
        str(one.get("uuid")): one for one in (devices if isinstance(devices, list) else ()) if isinstance(one, Mapping)
    }
    rows = sorted(_rows(said.get("gpu")), key=lambda row: _number(row.get("gpu")))
    span = _number(said.get("span"))
    gpus = tuple(_gpu(row, span, by_uuid.get(str(row.get("uuid")), {}), calibrations) for row in rows)
    unknown = GpuNow(nothing, "", nothing, nothing, nothing, nothing)
    host = next(_rows(said.get("host")), {})
    known = {key: value for key in _HOST if not math.isnan(value := _number(host.get(key)))}
    return NodeNow(
        name, said.get("ended") is True, _number(said.get("age")), gpus or (unknown,) * len(by_uuid), known,
        str(said.get("simulated") or ""), STALE_S,
    )  # fmt: skip


def _gpu(
    row: Mapping[str, Any], span: float, device: Mapping[str, Any], calibrations: Mapping[str, Peaks] | None
) -> GpuNow:
    values = {
        name: np.array([_number(value)], np.float32)
        for name, value in row.items()
        if name not in ("gpu", "uuid", "span")
    }
    own = _number(row.get("span"))
    weight = own if own > 0 else span if span > 0 else 1.0
    return of_samples(values, np.array([weight]), {**device, "pcie": _plain(device.get("pcie")),
                                                   "memory": _plain(device.get("memory"))}, calibrations)  # fmt: skip


def _why_not(said: Mapping[str, Any]) -> list[str]:
    """Return why a node tells no profiling counters."""
    sources = said.get("sources")
    if not isinstance(sources, Mapping):
        return []
    return [f"{name}: {why}" for name, why in sources.items() if why and str(name).partition(".")[0] in ("gpm", "nvml")]


def _rows(said: Any) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table of a frame."""
    columns, rows = (said.get("columns"), said.get("rows")) if isinstance(said, Mapping) else ((), ())
    if isinstance(columns, list) and isinstance(rows, list):
        for row in rows:
            if isinstance(row, list) and len(row) == len(columns):
                yield dict(zip(map(str, columns), row, strict=True))


def _number(value: Any) -> float:
    return float(value) if type(value) in (int, float) else float("nan")


def _plain(value: Any) -> float:
    number = _number(value)
    return 0.0 if math.isnan(number) else number
