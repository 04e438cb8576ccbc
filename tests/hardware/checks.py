"""What is held against what: a load's own account against the counters and the score, and one source against another.

Pure functions. Figures are shares 0..1; a point is 0.01. Sources of the rates: NVIDIA's data sheets, which give
dense bf16 FLOP/s at the boost clock, divided by clock and multiprocessors (looked up 2026-11-29): A100 312 TFLOP/s at
1.41 GHz and 108, H100 SXM 989 at 1.83 and 132, L40S 362 at 2.52 and 142, B200 2,250 at 1.85 and 148.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from piolet.score import saturation
from piolet.score.peaks import Peaks

OK, OFF, ABSENT = "ok", "off", "not here"
FLOP_PER_CYCLE = {(8, 0): 2048, (8, 6): 1024, (8, 9): 1024, (9, 0): 4096, (10, 0): 8192, (10, 3): 8192}
"""Dense bf16, of one multiprocessor, by compute capability."""
POINTS = {"product": 1.0, "copy": 3.0, "spin": 3.0, "alternating": 3.0, "duty": 3.0}
"""How far the score may be from the load's own rate, in points."""
SETTLE_S, END_S = 0.6, 0.3
COLUMNS = (*saturation.NEEDED, "clock_sm", "utilisation")


@dataclass(frozen=True)
class Check:
    """One line of the table. `state`: OK, OFF (what is held against each other differs), or ABSENT with the reason."""

    name: str
    state: str
    value: float | None = None
    expected: float | None = None
    limit: float | None = None
    unit: str = ""
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)


def absent(name: str, why: str) -> Check:
    """Return the line of what cannot be checked here."""
    return Check(name, ABSENT, note=why.strip().replace("\n", " ")[:300] or "no reason was given")


def near(name: str, value: float, expected: float, points: float, note: str = "") -> Check:
    """Return whether two shares are within so many points of each other."""
    if not (math.isfinite(value) and math.isfinite(expected)):
        return absent(name, f"no figure: {value} against {expected}")
    state = OK if abs(value - expected) <= points / 100 else OFF
    return Check(name, state, round(100 * value, 2), round(100 * expected, 2), points, "points", note)


def at_most(name: str, value: float, limit: float, unit: str, note: str = "") -> Check:
    """Return whether a figure is below its limit."""
    return Check(name, OK if value <= limit else OFF, round(value, 4), None, limit, unit, note)


def window(chunk: Mapping[str, Any], begin: float, end: float) -> dict[str, Any]:
    """Return the samples that lie wholly between two times (seconds since 1970)."""
    ends = chunk["end"] / 1e9
    inside = (ends - chunk["span"] >= begin) & (ends <= end)
    return {name: values[inside] for name, values in chunk.items()}


def mean(samples: Mapping[str, Any], name: str) -> float:
    """Return the mean of a quantity over time, NaN where it is nowhere known."""
    values, weights = samples[name], samples["span"]
    known = ~np.isnan(values)
    return float(np.average(values[known], weights=weights[known])) if known.any() else math.nan


def clock_at_work(samples: Mapping[str, Any], segments: Sequence[Mapping[str, Any]]) -> float:
    """Return the mean clock in MHz of the samples that lie wholly in a product, NaN: it is not told."""
    ends, spans, clock = samples["end"] / 1e9, samples["span"], samples["clock_sm"]
    inside = np.zeros(len(ends), bool)
    for one in segments:
        if one["what"] == "product":
            inside |= (ends - spans >= one["begin"]) & (ends <= one["end"])
    known = inside & ~np.isnan(clock)
    return float(clock[known].mean()) if known.any() else math.nan


def own_share(load: Mapping[str, Any], clock_mhz: float, bandwidth: float, begin: float, end: float) -> float:
    """Return what part of the device a load used between two times by its own account: the larger of two shares.

    Of each segment: FLOP/s over what the tensor pipes do at the clock that they had, and bytes/s over the memory's
    peak. NaN where the device's rates are not known.
    """
    rate = FLOP_PER_CYCLE.get(tuple(load["capability"]), math.nan) * load["sms"] * clock_mhz * 1e6
    total = used = 0.0
    for one in load["segments"]:
        seconds = max(0.0, min(end, one["end"]) - max(begin, one["begin"]))
        total += seconds
        # What is done in a part of a segment is that part of what is done in it.
        part = seconds / (one["end"] - one["begin"])
        if "share" in one:  # of a simulated device, which computes nothing
            used += one["share"] * seconds
        elif one["flop"] or one["bytes"]:
            flop_s = one["flop"] / rate if one["flop"] else 0.0
            used += part * max(flop_s, one["bytes"] / bandwidth if one["bytes"] else 0.0)
    return used / total if total else math.nan


def of_load(
    name: str, load: Mapping[str, Any], chunk: Mapping[str, Any], peaks: Peaks, bandwidth: float
) -> list[Check]:
    """Return the lines of one load: the score against its own rate, and that utilisation says something else."""
    segments: Sequence[Mapping[str, Any]] = load["segments"]
    begin, end = segments[0]["begin"] + SETTLE_S, segments[-1]["end"] - END_S
    samples = window(chunk, begin, end)
    label = f"score of '{name}'"
    if len(samples["span"]) < 10:
        return [absent(label, f"there are {len(samples['span'])} samples in its time")]
    score = saturation.score({key: samples[key] for key in saturation.NEEDED}, peaks)
    if np.isnan(score.s).all():
        return [absent(label, "the collector has no counters of the tensor pipe and the memory")]
    ours = mean({"s": score.s, "span": samples["span"]}, "s")
    clock = clock_at_work(samples, segments)
    own = own_share(load, clock, bandwidth, begin, end)
    counters = f"tensor {mean(samples, 'tensor'):.3f}, DRAM {mean(samples, 'dram'):.3f}, SM {mean(samples, 'sm'):.3f}"
    note = counters + (f", {clock:.0f} MHz at work" if math.isfinite(clock) else "")
    found = [near(label, ours, own, POINTS[name], note)]
    if name == "spin":  # what the score is for: a GPU that is busy, and does nothing
        found.append(near("utilisation of 'spin'", mean(samples, "engine"), 1.0, 3.0, "engine active"))
    return found
