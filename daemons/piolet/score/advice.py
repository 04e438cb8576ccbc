"""What a user may do about a step, each with its evidence: one small function a rule.

Wrong advice is worse than none. So a rule says what was seen and what usually causes it; it stays silent where the
counters that it needs are missing, and where too little of the step is covered those that judge all of it do (see
`advise`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from piolet.score.overview import Overview

Array = np.ndarray[Any, np.dtype[Any]]

UNUSED = 0.005  # of engine activity
_COVERAGE_LEAST = 0.5
_SECONDS_LEAST = 5.0


@dataclass(frozen=True)
class Advice:
    """One piece: what was seen, with figures; what it usually means; how much it matters (0..1)."""

    rule: str
    seen: str
    do: str
    weight: float


Rule = Callable[[Overview], Advice | None]


def advise(view: Overview, most: int = 3) -> list[Advice]:
    """Return the weightiest pieces of advice."""
    if len(view.gpus) == 0:
        return []
    enough = view.seconds >= _SECONDS_LEAST and view.score().coverage >= _COVERAGE_LEAST
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # means of nothing are NaN, and compare false
        found = [advice for rule in (RULES if enough else EVENTS) if (advice := rule(view)) is not None]
    return sorted(found, key=lambda advice: -advice.weight)[:most]


def used(view: Overview) -> Array:
    """Return which GPUs did anything at all."""
    busy = np.fmax(view.means["engine"], view.means["utilisation"])
    return np.asarray(~(busy < UNUSED))


def percent(share: float | None) -> str:
    """Return a share as text."""
    return "-" if share is None else f"{100 * share:.0f} %"


def errors(view: Overview) -> Advice | None:
    """XID errors, which the driver reports when a GPU or a program on it fails."""
    hit = [(gpu, codes) for gpu, codes in zip(view.gpus, view.xids, strict=True) if codes]
    if not hit:
        return None
    gpu, codes = hit[0]
    text = f"{len(hit)} GPUs reported" if len(hit) > 1 else f"GPU {gpu.index} of {gpu.node} reported"
    return Advice(
        "errors",
        f"{text} XID {', '.join(map(str, codes))}",
        "NVIDIA's list of XID errors says whether the program or the device is at fault; show it to the site",
        1.0,
    )


def unused(view: Overview) -> Advice | None:
    """GPUs that were allocated and never used."""
    idle = np.flatnonzero(~used(view))
    if len(idle) == 0:
        return None
    names = ", ".join(f"{view.gpus[i].node}:{view.gpus[i].index}" for i in idle[:4])
    more = ", …" if len(idle) > 4 else ""
    return Advice(
        "unused",
        f"{len(idle)} of {len(view.gpus)} GPUs did nothing ({names}{more})",
        "ask for fewer GPUs, or check that each task gets its own",
        len(idle) / len(view.gpus),
    )


def waiting(view: Overview) -> Advice | None:
    """GPUs that wait for the host again and again."""
    mask = used(view)
    score = view.score(mask)
    per_bin = view.timeline("engine", mask) if mask.any() else np.ones(1)
    if score.value is None or score.idle < 0.15 or not np.nanmean(per_bin) > 0.05:
        return None
    busy = np.flatnonzero(per_bin > 0.02)
    middle = per_bin[busy[0] : busy[-1] + 1] if len(busy) else per_bin
    idle = 1 - float(np.nanmean(middle))
    if idle < 0.15:  # all of it was before the first and after the last kernel: start-up, not waiting
        return None
    cause = "data loading, checkpoints and other work of the CPUs between kernels are the usual causes"
    pressure = _host(view, "io_pressure")
    if pressure > 0.1:
        cause = f"tasks waited for I/O in {percent(pressure)} of the time: look at how data are read and written"
    return Advice(
        "waiting", f"between its first and last kernel a GPU was idle {percent(idle)} of the time", cause, idle
    )


def narrow(view: Overview) -> Advice | None:
    """Kernels that fill only a part of the GPU."""
    score = view.score(used(view))
    if score.value is None or score.narrow < 0.3:
        return None
    engine, sm = (float(np.nanmean(view.means[name][used(view)])) for name in ("engine", "sm"))
    if not sm < 0.6 * engine:
        return None
    return Advice(
        "narrow",
        f"something ran in {percent(engine)} of the time, but on {percent(sm)} of the SMs",
        "give the GPU more at once: larger batches, fused kernels, CUDA graphs, or several processes per GPU",
        score.narrow,
    )


def tensor_cores(view: Overview) -> Advice | None:
    """FP32 arithmetic where tensor cores could do it."""
    mask = used(view)
    fp32, tensor = (float(np.nanmean(view.means[name][mask])) for name in ("fp32", "tensor"))
    if not (fp32 > 0.2 and tensor < 0.02):
        return None
    return Advice(
        "tensor cores",
        f"the FP32 pipes were active in {percent(fp32)} of the cycles, the tensor cores in {percent(tensor)}",
        "if this is matrix arithmetic and its precision allows: TF32 or bf16 run on tensor cores, many times faster",
        0.8 * fp32,
    )


def memory_bound(view: Overview) -> Advice | None:
    """Device memory as the limit."""
    score = view.score(used(view))
    if score.value is None or score.by_memory < 0.5 or score.memory < 0.4:
        return None
    return Advice(
        "memory bound",
        f"memory bandwidth was the limit in {percent(score.by_memory)} of the time (at {percent(score.memory)} of it)",
        "faster arithmetic will not help; moving fewer bytes will: fused kernels, smaller types, better reuse",
        0.3 * score.by_memory,
    )


def communication(view: Overview) -> Advice | None:
    """Links as the limit."""
    mask = used(view)
    score = view.score(mask)
    if score.value is None or score.by_network - score.by_nic < 0.25:
        return None
    rates = {
        link: float(np.nanmax([np.nanmean(view.means[f"{link}_{way}"][mask]) for way in ("tx", "rx")]))
        for link in ("nvlink", "pcie", "c2c")
    }
    peaks, part = view.gpus[0].peaks, percent(score.by_network - score.by_nic)
    link = max(rates, key=lambda name: np.nan_to_num(rates[name]) / (getattr(peaks, name) or 1e30))
    label = {"nvlink": "NVLink", "pcie": "PCIe", "c2c": "C2C"}[link]
    return Advice(
        "communication bound",
        f"a link was the limit in {part} of the time; {label} moved {rates[link] / 1e9:.0f} GB/s",
        "overlap communication with computation, send less of it, or keep data on the device",
        0.6 * score.by_network,
    )


def network(view: Overview) -> Advice | None:
    """The node's network interface as the limit: messages between nodes, or files."""
    score = view.score(used(view))
    shares, rates = (view.high.get(name, np.zeros(0)) for name in ("nic", "nic_rate"))
    if score.value is None or score.by_nic < 0.25 or not (busy := shares > 0.5).any():
        return None
    names = sorted({name.partition(" ")[2] for name in view.nics})
    which = names[0] if len(names) == 1 else f"the busiest of {', '.join(names[:8])}"
    return Advice(
        "network bound",
        f"the nodes' network was the limit in {percent(score.by_nic)} of the time: {which} moved "
        f"{float(np.nanmean(rates[busy])) / 1e9:.1f} GB/s, {percent(float(np.nanmean(shares[busy])))} of its line rate",
        "send less between nodes, overlap it with computation, use all interfaces of a node, or read files less often",
        0.6 * score.by_nic,
    )


def one_slow(view: Overview) -> Advice | None:
    """One GPU whose clock lags behind its peers: in synchronous work all others wait for it."""
    mask = used(view) & ~np.isnan(view.clock)
    if mask.sum() < 4:
        return None
    clock = np.where(mask, view.clock, np.inf)
    median = float(np.median(view.clock[mask]))
    # A GPU that has less to do lowers its clock; then the clock is no cause.
    engine = view.means["engine"]
    works = np.isnan(engine) | (engine >= 0.9 * np.nanmedian(engine[mask]))
    clock = np.where(works, clock, np.inf)
    slow = np.flatnonzero(clock < 0.9 * median)
    if not 1 <= len(slow) <= 0.25 * mask.sum():
        return None
    gpu = view.gpus[int(np.argmin(clock))]
    least = float(clock.min())
    return Advice(
        "slow GPU",
        f"GPU {gpu.index} of {gpu.node} ran at {least:.0f} MHz, the median at {median:.0f} MHz",
        "where GPUs wait for each other this one sets the pace: show it to the site, or leave the node out",
        1 - least / median,
    )


def straggler(view: Overview) -> Advice | None:
    """A few GPUs that are far less saturated than the others."""
    each = view.per_gpu()
    mask = used(view) & ~np.isnan(each)
    if mask.sum() < 4:
        return None
    median = float(np.median(each[mask]))
    behind = np.flatnonzero(mask & (each < min(0.8 * median, median - 0.05)))
    if not 1 <= len(behind) <= 0.25 * mask.sum():
        return None
    behind = behind[np.argsort(each[behind])]
    names = ", ".join(f"{view.gpus[i].node} GPU {view.gpus[i].index}" for i in behind[:3])
    more = f" and {len(behind) - 3} more" if len(behind) > 3 else ""
    worst = float(each[behind[0]])
    return Advice(
        "straggler",
        f"{names}{more}: saturation {percent(worst)}, the median of all is {percent(median)}",
        "an uneven share of the work, or slow input on that node; where GPUs wait for each other all wait for it",
        1 - worst / median,
    )


def heat(view: Overview) -> Advice | None:
    """Clocks held back by temperature or by the hardware's protection."""
    share = np.fmax(view.events["heat"], view.events["hardware"])
    hot = np.flatnonzero(share > 0.05)
    if len(hot) == 0:
        return None
    worst = int(hot[np.argmax(share[hot])])
    gpu = view.gpus[worst]
    return Advice(
        "heat",
        f"{len(hot)} GPUs were slowed by heat or hardware protection; GPU {gpu.index} of {gpu.node} in "
        f"{percent(float(share[worst]))} of the time, at up to {view.peak['temperature'][worst]:.0f} degrees",
        "nothing in the program causes this: show it to the site",
        0.9 * float(share[worst]),
    )


def power(view: Overview) -> Advice | None:
    """Clocks held back by the power limit."""
    mask = used(view)
    share = float(np.nanmean(view.events["power"][mask])) if mask.any() else 0.0
    if not share > 0.3:
        return None
    watt, clock = float(np.nanmean(view.means["power"][mask])), float(np.nanmean(view.clock[mask]))
    return Advice(
        "power limit",
        f"the power limit held the clocks back in {percent(share)} of the time (mean {watt:.0f} W, {clock:.0f} MHz)",
        "this is normal under full load; it matters where a site has set a lower limit than the device's own",
        0.2 * share,
    )


def memory_size(view: Overview) -> Advice | None:
    """Device memory that is nearly full, or mostly unused by a step that does not fill the GPU."""
    mask = used(view)
    total = np.array([gpu.memory for gpu in view.gpus], float)
    share = np.divide(view.peak["memory_used"], total, out=np.full(len(total), np.nan), where=total > 0)[mask]
    if share.size == 0 or np.isnan(share).all():
        return None
    most = float(np.nanmax(share))
    if most > 0.97:
        return Advice(
            "memory full",
            f"device memory was up to {percent(most)} full",
            "a little more and it fails; frameworks that reserve all memory at start show this without need",
            0.15,
        )
    score = view.score(mask)
    if most < 0.25 and score.value is not None and score.value < 0.3 and score.narrow > 0.2:
        return Advice(
            "memory unused",
            f"at most {percent(most)} of device memory was used, and the GPU was not filled",
            "there is room for a larger batch",
            0.3,
        )
    return None


def _host(view: Overview, name: str) -> float:
    values = view.host.get(name)
    return float(np.nanmean(values)) if values is not None and not np.isnan(values).all() else 0.0


# What has happened has happened, however little else is known: without profiling counters, or in a second.
EVENTS: tuple[Rule, ...] = (errors, heat)
RULES: tuple[Rule, ...] = (
    errors,
    unused,
    waiting,
    narrow,
    tensor_cores,
    memory_bound,
    communication,
    network,
    straggler,
    one_slow,
    heat,
    power,
    memory_size,
)
