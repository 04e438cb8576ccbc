"""The saturation score: from counters to one number, and to what explains it. Pure: arrays in, arrays out.

Notation: for one sample of one GPU, `a_k` is the share of cycles in which unit k was active (DCGM's profiling
fields, NVML's GPM metrics), `eta_k` the share that the best known code reaches, and a peak the bytes per second
of a link in one direction (peaks.py). Everything is weighted with the seconds that a sample covers, so a series
may be split or merged anywhere without changing a result.

Source of the definitions: the roofline model (Williams, Waterman, Patterson, CACM 52(4), 2009) names compute and
memory bandwidth as the two ceilings; communication is the third one of distributed training. The mean of the
maximum is ours: phases alternate between ceilings, and the maximum of the means would hide that.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from piolet.score.clock import CAUSES, UNNAMED, cause
from piolet.score.peaks import LEAST, Peaks

Array = np.ndarray[Any, np.dtype[Any]]

PIPES = ("tensor", "fp64", "fp32", "fp16")
LINKS = (("nvlink", "nvlink_tx", "nvlink_rx"), ("pcie", "pcie_tx", "pcie_rx"), ("c2c", "c2c_tx", "c2c_rx"))
NEEDED = ("engine", "sm", *PIPES, "dram", *(name for link in LINKS for name in link[1:]))
HIGH = 0.6  # "saturated": the time above this is reported
BUSY = 0.05  # below this nothing limits: the GPU has nothing to do
UNSURE = 0.01  # by which what s can be at most must be above s, for a missing pipe to matter
COVERAGE = 0.95  # below this share of covered time the score is a range


@dataclass(frozen=True)
class Weights:
    """How much each ceiling counts in the aggregated picture; only what they are to each other matters."""

    compute: float = 1.0
    memory: float = 1.0
    communication: float = 1.0

    @property
    def text(self) -> str:
        """The weights in words; '' if all are equal."""
        if self.compute == self.memory == self.communication:
            return ""
        return f"compute {self.compute:g}, memory {self.memory:g}, communication {self.communication:g}"

    def aggregate(self, c: Array, m: Array, n: Array) -> Array:
        """Return the max over k of w_k x_k over the largest weight, of arrays of one shape."""
        heaviest = max(self.compute, self.memory, self.communication)
        weighted = ((self.compute, c), (self.memory, m), (self.communication, n))
        result: Array = np.maximum.reduce([weight / heaviest * values for weight, values in weighted])
        return result


@dataclass(frozen=True)
class Samples:
    """Per sample: compute c, memory m, network n, saturation s, SM and engine activity, each 0..1; NaN: unknown.

    most      what s can be at most: above s where a pipe or a link was not told of
    nic       the node's network interface, a part of n
    rated     what s would be of a GPU at its highest clocks: activity times clock over the highest clock
    ofu       tensor activity times clock over the highest clock
    """

    c: Array
    m: Array
    n: Array
    s: Array
    sm: Array
    engine: Array
    most: Array
    nic: Array
    rated: Array
    ofu: Array


def score(values: Mapping[str, Array], peaks: Peaks, doubtful: Collection[str] = ()) -> Samples:
    """Return the saturation of every sample.

    c = max over pipes k in {tensor, FP64, FP32, FP16} of min(1, a_k / eta_k); a pipe without a value is left out
    m = min(1, a_DRAM / eta_DRAM)
    n = max over links l in {NVLink, PCIe, C2C} of min(1, max(TX_l, RX_l) / peak_l), and of `nic`, the share of the line
        rate of the node's busiest network interface; unknown links are left out
    s = max(c, m, n), and NaN unless both c and m are known: without them nothing is known
    most = s where every pipe is known, else max(s, max over the missing pipes k of min(1, a_SM / eta_k)): a pipe works
        in no cycle in which no multiprocessor has work; without a_SM, 1. A missing pipe is no zero, so s is what the
        saturation is at least. Likewise 1 where a link of `doubtful` is missing, which is known to be one that may have
        moved bytes; of a model whose links are not known, what moved over the least of all that are known (LEAST);
        and `nic_others`, the same as `nic` where the node's other GPUs may have caused it
    rated = max(c f_SM, m f_memory, n), f being `clock_share` and `memory_clock_share`; ofu = a_tensor f_SM
        (arXiv 2605.20799); NaN without them, unless there is no more than UNSURE that a clock could take from

    `values` has arrays of one length by the names of api.GPU_QUANTITIES, and those named here; absent ones are unknown.
    """
    size = next((len(array) for array in values.values()), 0)
    missing = np.full(size, np.nan, np.float32)
    pipes = [_share(values[name], getattr(peaks, f"eta_{name}")) for name in PIPES if name in values]
    c = _fmax(pipes, missing)
    m = _share(values["dram"], peaks.eta_dram) if "dram" in values else missing
    links = [
        _share(values[name], getattr(peaks, link))
        for link, *names in LINKS
        for name in names
        if name in values and getattr(peaks, link) > 0
    ]
    nic = np.nan_to_num(values.get("nic", missing))
    n = np.maximum(np.nan_to_num(_fmax(links, missing), copy=False, nan=0.0), nic)
    s = np.maximum(np.maximum(c, m), n)  # np.maximum keeps NaN
    engine = _share(values["engine"], 1.0) if "engine" in values else missing
    sm = _share(values["sm"], 1.0) if "sm" in values else missing
    most = s
    for name in PIPES:
        pipe = values.get(name, missing)
        bound = _share(np.nan_to_num(sm, nan=1.0), getattr(peaks, f"eta_{name}"))
        most = np.where(np.isnan(pipe), np.maximum(most, bound), most)
    for link, *names in LINKS:
        if peaks.is_known and not getattr(peaks, link):
            continue  # the model has none
        told = [values.get(name, missing) for name in names]
        if not peaks.is_known:
            most = np.maximum(most, np.nan_to_num(_share(_fmax(told, missing), LEAST[link])))
        if link in doubtful:
            most = np.where(np.isnan(told[0]) | np.isnan(told[1]), np.maximum(most, 1), most)
    most = np.maximum(most, np.nan_to_num(values.get("nic_others", missing)))
    f, f_memory = (values.get(name, missing) for name in ("clock_share", "memory_clock_share"))
    rated = np.maximum(np.maximum(c * f, m * f_memory), n)
    rated = np.where(np.isnan(rated) & (s <= UNSURE), s, rated)
    tensor = values.get("tensor", missing)
    ofu = np.where(np.isnan(f) & (tensor <= UNSURE), tensor, tensor * f)
    return Samples(c, m, n, s, sm, engine, most, nic, rated, ofu)


def _share(values: Array, best: float) -> Array:
    return np.clip(values / np.float32(best), np.float32(0), np.float32(1))


def _fmax(arrays: list[Array], empty: Array) -> Array:
    if not arrays:
        return empty.copy()
    result = arrays[0]
    for array in arrays[1:]:
        result = np.fmax(result, array)  # np.fmax ignores NaN
    return result


@dataclass(frozen=True)
class Totals:
    """Sums over samples, one entry per GPU, in seconds; adding two of them is adding the series.

    covered      seconds with a score; all sums below are over them
    s, c, m, n   the integral of the score and of its parts
    by_c, by_m, by_n    seconds in which each was the limit; the rest of `covered` had s below BUSY
    high         seconds with s above HIGH
    idle, narrow, stalled, unexplained    the waterfall, see `waterfall`
    most         the integral of what the score can be at most
    unsure       seconds of `covered` in which a pipe or a link that was not told of may have been the limit
    by_nic       seconds of `by_n` in which it was the node's network interface
    clocked      seconds of `covered` whose clocks were told; over them is
    rated        the integral of the score at the clocks that there were
    heat, power, hardware, cap, unnamed    of what is between `s` and that, by what held the clock back
    tensored, ofu    seconds with tensor activity and clock; the integral of their product
    """

    covered: Array
    s: Array
    c: Array
    m: Array
    n: Array
    by_c: Array
    by_m: Array
    by_n: Array
    high: Array
    idle: Array
    narrow: Array
    stalled: Array
    unexplained: Array
    most: Array
    unsure: Array
    by_nic: Array
    clocked: Array
    rated: Array
    heat: Array
    power: Array
    hardware: Array
    cap: Array
    unnamed: Array
    tensored: Array
    ofu: Array

    def __add__(self, other: Totals) -> Totals:
        pairs = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in dataclasses.fields(Totals)}
        return Totals(**pairs)

    @staticmethod
    def zero(gpus: int) -> Totals:
        """Return the totals of nothing."""
        return Totals(*(np.zeros(gpus) for _ in dataclasses.fields(Totals)))


def totals(samples: Samples, seconds: Array, gpu: Array, gpus: int, events: Array | None = None) -> Totals:
    """Return the sums; `seconds` is what each sample covers, `gpu` which GPU (0..gpus-1) it is of, `events` why the
    clock is held back (nvmlClocksEventReason)."""
    known = ~np.isnan(samples.s)
    weight = np.where(known, seconds, 0).astype(np.float64)
    s, c, m, n = (np.nan_to_num(array) for array in (samples.s, samples.c, samples.m, samples.n))
    first = (c >= m) & (c >= n)
    second = ~first & (m >= n)
    most = np.nan_to_num(samples.most)
    unsure = most > s + UNSURE
    busy = (s >= BUSY) & ~unsure
    idle, narrow, stalled, unexplained = waterfall(s, samples.sm, samples.engine)
    by_n = ~first & ~second & busy
    clocked = ~np.isnan(samples.rated)
    rated = np.where(clocked, samples.rated, 0)
    lost = np.where(clocked, s - rated, 0)
    causes = cause(np.full(len(s), np.nan) if events is None else events)
    by_cause = [np.where(causes == place, lost, 0) for place in range(len(CAUSES) + 1)]

    def add(what: Array) -> Array:
        return np.bincount(gpu, weights=what * weight, minlength=gpus)

    return Totals(
        covered=np.bincount(gpu, weights=weight, minlength=gpus),
        s=add(s),
        c=add(c),
        m=add(m),
        n=add(n),
        by_c=add(first & busy),
        by_m=add(second & busy),
        by_n=add(by_n),
        high=add(s > HIGH),
        idle=add(idle),
        narrow=add(narrow),
        stalled=add(stalled),
        unexplained=add(unexplained),
        most=add(most),
        unsure=add(unsure),
        by_nic=add(by_n & (samples.nic >= n)),
        clocked=add(clocked),
        rated=add(rated),
        **{name: add(part) for name, part in zip((*CAUSES, UNNAMED), by_cause, strict=True)},
        tensored=add(~np.isnan(samples.ofu)),
        ofu=add(np.nan_to_num(samples.ofu)),
    )


def waterfall(s: Array, sm: Array, engine: Array) -> tuple[Array, Array, Array, Array]:
    """Return idle, narrow, stalled and unexplained; with s they add up to 1 in every sample.

    With e = engine activity and a = SM activity, both raised to at least what lies below them (a copy engine
    moves data without any SM, and counters are noisy): a' = max(a, s), e' = max(e, a'),
    idle = 1 - e'    nothing ran: what "utilisation" would show too
    narrow = e' - a'    something ran, on few SMs: small batches, small kernels
    stalled = a' - s    SMs had work and waited: for memory latency, for instructions that are not counted
    unexplained    what these would divide, were a or e known: without e 1 - a', without a e' - s, without both 1 - s
    """
    above_sm = np.fmax(sm, s)
    above_engine = np.fmax(engine, above_sm)
    no_sm, no_engine = np.isnan(sm), np.isnan(engine)
    idle = np.where(no_engine, 0, 1 - above_engine)
    narrow = np.where(no_engine | no_sm, 0, above_engine - above_sm)
    stalled = np.where(no_sm, 0, above_sm - s)
    return idle, narrow, stalled, 1 - s - idle - narrow - stalled


@dataclass(frozen=True)
class Score:
    """What a set of GPUs did in a time span; all but `seconds` and `gpus` are shares of 0..1.

    low, high    what the score could be if every second without data had been idle, or saturated
    value        the mean over the covered time; None: nothing is covered
    most         what that mean can be at most: above `value` where a pipe or a link was not told of
    unsure       share of the covered time in which such a one may have been the limit
    clocked      share of the covered time whose clocks were told
    rated        the mean at the clocks that there were, over that time; None: no clock was told
    throttled    what a clock below the highest took from the value; of which heat, power, hardware, cap, unnamed
    ofu          tensor activity times clock over the highest clock; None: one of them is not told
    """

    value: float | None
    low: float
    high: float
    coverage: float
    compute: float
    memory: float
    network: float
    by_compute: float
    by_memory: float
    by_network: float
    above: float
    idle: float
    narrow: float
    stalled: float
    unexplained: float
    seconds: float
    gpus: int
    most: float
    unsure: float
    by_nic: float
    clocked: float
    rated: float | None
    throttled: float
    heat: float
    power: float
    hardware: float
    cap: float
    unnamed: float
    ofu: float | None

    @property
    def useful(self) -> float | None:
        """What of the value is left of a GPU at its highest clock."""
        return None if self.value is None else self.value - self.throttled

    @property
    def is_range(self) -> bool:
        """Whether too little is covered for a number."""
        return self.coverage < COVERAGE

    @property
    def is_lower_bound(self) -> bool:
        """Whether a pipe was not told of that may have been busier than what was."""
        return self.value is not None and self.most > self.value + UNSURE


def summarise(sums: Totals, seconds: float, which: Array | None = None) -> Score:
    """Return the score of GPUs (`which`: a mask or indices; all by default) over `seconds` each.

    S = sum of s_i dt_i / sum of dt_i, over time and GPUs. With u = 1 - coverage, the share of GPU-seconds without
    data, low = coverage * S and high = coverage * S_most + u: no assumption about what is missing.
    """
    picked = sums if which is None else Totals(*(getattr(sums, f.name)[which] for f in dataclasses.fields(Totals)))
    gpus = len(picked.covered)
    covered = float(picked.covered.sum())
    expected = max(seconds * gpus, covered)
    coverage = covered / expected if expected > 0 else 0.0

    def mean(array: Array) -> float:
        return float(array.sum()) / covered if covered > 0 else 0.0

    value = mean(picked.s)
    return Score(
        value=value if covered > 0 else None,
        low=coverage * value,
        high=min(1.0, coverage * mean(picked.most) + 1 - coverage),
        coverage=coverage,
        compute=mean(picked.c),
        memory=mean(picked.m),
        network=mean(picked.n),
        by_compute=mean(picked.by_c),
        by_memory=mean(picked.by_m),
        by_network=mean(picked.by_n),
        above=mean(picked.high),
        idle=mean(picked.idle),
        narrow=mean(picked.narrow),
        stalled=mean(picked.stalled),
        unexplained=mean(picked.unexplained),
        seconds=seconds,
        gpus=gpus,
        most=mean(picked.most),
        unsure=mean(picked.unsure),
        by_nic=mean(picked.by_nic),
        clocked=mean(picked.clocked),
        rated=_over(picked.rated, picked.clocked),
        throttled=sum(mean(getattr(picked, name)) for name in (*CAUSES, UNNAMED)),
        **{name: mean(getattr(picked, name)) for name in (*CAUSES, UNNAMED)},
        ofu=_over(picked.ofu, picked.tensored),
    )


def _over(sums: Array, seconds: Array) -> float | None:
    whole = float(seconds.sum())
    return float(sums.sum()) / whole if whole > 0 else None


def balance(per_gpu: Array) -> float:
    """Return the load balance mean / max of the GPUs' values, 1 when all are equal (or all 0).

    Source: the load balance efficiency of the POP project (pop-coe.eu), applied to saturation.
    """
    known = per_gpu[~np.isnan(per_gpu)]
    most = float(known.max()) if len(known) else 0.0
    return float(known.mean()) / most if most > 0 else 1.0
