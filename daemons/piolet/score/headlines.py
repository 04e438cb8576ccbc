"""The headline figures of a step: saturation, utilisation, energy, coverage, size, each with its witness or its reason.

| figure      | witness                                                                    |
|-------------|----------------------------------------------------------------------------|
| saturation  | utilisation, which another part of the driver counts, contradicts no sample |
| utilisation | engine activity agrees, or the power drawn is that of a busy GPU            |
| energy      | the integral of the power over the same time agrees with the counter        |
| coverage    | the end of the step: Slurm's, or the command's                              |
| size        | the GPUs that Slurm gave to the step are those that were seen               |
| rated       | as saturation, and the driver says why clocks are below their highest       |
| ofu         | as saturation                                                               |
| mfu         | none: it always is an estimate                                              |
"""

from __future__ import annotations

import numpy as np

from piolet.base import texts
from piolet.samples.dataset import Dataset, Node
from piolet.score.figure import Figure, between, withheld, witnessed
from piolet.score.overview import Overview
from piolet.score.saturation import COVERAGE, PIPES

TOLD = 0.5  # of the covered time: in so much of it the witness must have been there
APART = 0.25  # utilisation and engine activity further apart than this do not confirm each other
ENERGY_APART, ENERGY_APART_J = 0.15, 20.0  # of the larger; and for each GPU
UNNAMED = 0.02  # of saturation: so much may be lost to lower clocks without a reason
MFU_APART, RECOMPUTED = 0.02, 0.75
_WITNESS, _UNCONFIRMED = "utilisation contradicts it nowhere", "utilisation, which would confirm it, is not told"
LINK_NAMES = {"nvlink": "NVLink", "pcie": "PCIe", "c2c": "C2C"}
BUSY_POWER = 0.5  # of the power limit: an idle GPU draws less
UNCOUNTED, UNCOUNTED_S = 0.1, 2.5  # of the step; the energy counter is read once a second


def saturation(data: Dataset, view: Overview) -> Figure:
    """Return the mean saturation, 0..1."""
    score = view.score()
    if not view.gpus:
        return withheld("the step has no GPU")
    if score.value is None:
        return withheld(_no_score(view))
    low: float | None = score.value
    high: float | None = score.value
    full = (disk_full(node) for node in data.nodes)
    reasons = [*unseen(data)[:1], *filter(None, full)][:2]
    if score.is_range:
        low, high = score.low, score.high
        reasons.append(f"{_percent(1 - score.coverage)} of the GPUs' time has no score")
    if view.denied.any():
        reasons.append(denied(view))
        low, high = score.low, score.high
    if score.is_lower_bound:
        high = high if score.is_range or view.denied.any() else None
        reasons += unbounded(view)
    if not _confirmed(view):
        high = None
        reasons.append(_UNCONFIRMED)
    if view.remade:
        high = None  # the largest of the means is at most the mean of the largest
        reasons.append("it is made of samples that have been thinned")
    if shared(data):
        low = None
        reasons.append(shared(data))
    if low is None and high is None:
        return withheld("; ".join(reasons))
    return between(low, high, "; ".join(reasons)) if reasons else witnessed(score.value, _WITNESS)


def _confirmed(view: Overview) -> bool:
    """Return whether utilisation was there; where it contradicts a sample, that one is missing."""
    covered = view.totals.covered
    return float(np.minimum(view.told, covered).sum()) >= TOLD * float(covered.sum())


def _no_score(view: Overview) -> str:
    if view.denied.any():
        return denied(view)
    if not view.rows:
        return "no sample was taken"
    return "no profiling counters: saturation cannot be told from utilisation"


def denied(view: Overview) -> str:
    """Return in words whose counters are not believed."""
    which = np.flatnonzero(view.denied)
    gpu = view.gpus[int(which[0])]
    more = f" and {len(which) - 1} more" if len(which) > 1 else ""
    return (
        f"the profiling counters of {gpu.node} GPU {gpu.index}{more} stood at 0 or still while utilisation was above "
        f"50 %, for {view.denied.max():.1f} s"
    )


def unseen(data: Dataset) -> list[str]:
    """Return in words which of the step's GPUs were not measured."""
    return [
        f"{node.name} GPU {index} ({device['uuid']}) was not measured: {device['unseen']}"
        for node in data.nodes
        for index, device in enumerate(node.facts.devices)
        if device.get("unseen")
    ]


def disk_full(node: Node) -> str:
    """Return in words for how long a node's disk was full; '' where it was not."""
    events = [event for event in node.facts.events if event["event"] == "full"]
    if not events:
        return ""
    origin = int(node.facts.header["origin"]) - node.facts.start
    since, until = (sorted((event[key] + origin) / 1e9 for event in events) for key in ("since", "at"))
    frames = sum(int(event["dropped"]) for event in events)
    return (
        f"disk full on {node.name} ({events[0]['text']}): {texts.counted(frames, 'frame')}, each of up to a second of "
        f"samples, lost from second {since[0]:.1f} to {until[-1]:.1f}"
    )


def unbounded(view: Overview) -> list[str]:
    """Return in words why the saturation may be more than what is known of it; at least one reason."""
    seen = view.totals.covered > 0
    names = [name.upper() for name in PIPES if np.isnan(view.means[name][seen]).any()]
    peaks = [gpu.peaks for gpu in view.gpus]
    names += [LINK_NAMES[link] for link in view.doubtful if any(not p.is_known or getattr(p, link) for p in peaks)]
    reasons = [f"{', '.join('tensor activity' if n == 'TENSOR' else n for n in names)} is missing, which is not zero"]
    reasons = reasons if names else []
    if unknown := sorted({gpu.model or "a GPU" for gpu in view.gpus if not gpu.peaks.is_known}):
        reasons.append(f"communication is not judged: nothing is known of the links of {', '.join(unknown)}")
    if view.others and view.nics:
        reasons.append("the network was busy, and may have been so for others: the step had not all GPUs of a node")
    return reasons or ["a pipe was missing at times, which is not zero"]


def rated(data: Dataset, view: Overview) -> Figure:
    """Return what the saturation would be of GPUs at their highest clocks: activity times clock over that, 0..1."""
    now, score = saturation(data, view), view.score()
    if now.is_withheld or score.value is None:
        return withheld(now.reason)
    if score.rated is None:
        return between(None, now.high, "no clock is told")
    # While no clock was told, all may have been lost to it, or nothing; or as much as else.
    least, most = score.rated * score.clocked, score.value - score.throttled
    share = least / (least + score.throttled) if least > 0 else 1.0
    if now.value is None:
        return between(None if now.low is None else now.low * share, now.high, now.reason)
    if score.clocked < COVERAGE:
        return between(least, max(least, most), f"clocks are told in {_percent(score.clocked)} of the time")
    if score.unnamed > UNNAMED:
        reason = "clocks were below their highest, and the driver does not say why"
        return between(now.value * share, now.value, reason)
    return witnessed(now.value * share, f"{now.witness}; the driver says why clocks were lower")


def ofu(data: Dataset, view: Overview) -> Figure:
    """Return tensor activity times clock over the highest clock, 0..1 (OFU of arXiv 2605.20799)."""
    share = view.score().ofu
    if share is None:
        return withheld(denied(view) if view.denied.any() else "tensor activity or the clock is not told")
    if shared(data):
        return between(None, share, shared(data))
    part = float(view.totals.tensored.sum() / max(view.expected.sum(), view.totals.tensored.sum()))
    if part < COVERAGE:
        low = part * share
        return between(low, max(low, low + 1 - part), f"it is of {_percent(part)} of the time")
    if not _confirmed(view):
        return between(None, share, _UNCONFIRMED)
    return witnessed(share, _WITNESS)


def mfu(data: Dataset, view: Overview) -> Figure:
    """Return an estimate of the model FLOPS utilisation, 0..1: always a range.

    What tensor pipes did at the clock of the product's data sheet (so OFU times highest clock over that one), with the
    2 points of arXiv 2605.20799; the lower end is where a model computes all activations again, of which an
    application counts 6 of 8 operations (arXiv 2205.05198). Both are of dense products in one precision.
    """
    of = ofu(data, view)
    if of.is_withheld or of.high is None:
        return withheld(of.reason or "OFU is not known")
    if unknown := sorted({gpu.model for gpu in view.gpus if not gpu.peaks.clock_sheet}):
        return withheld(f"the tensor rate of {', '.join(unknown)} over the clock is not known here")
    done = np.array([g.clock_sm_max / g.peaks.clock_sheet for g in view.gpus]) * np.nan_to_num(view.totals.ofu)
    share = float(np.nansum(done) / view.totals.ofu.sum()) if view.totals.ofu.sum() > 0 else 1.0
    low, high = RECOMPUTED * (of.low or 0.0) * share - MFU_APART, of.high * share + MFU_APART
    return between(max(0.0, low), min(1.0, high), "an estimate: no application said what it computed")


def shared(data: Dataset) -> str:
    """Return in words with which other steps GPUs were shared; '' with none."""
    events = [event for node in data.nodes for event in node.facts.events if event["event"] == "shared"]
    if not events:
        return ""
    gpus = texts.counted(len({str(event["gpu"]) for event in events}), "GPU")
    names = sorted({str(event["with"]) for event in events if event["with"]})
    other = f"step {', '.join(names[:4])}" if names else "another step"
    return f"{gpus} shared with {other}: the figures are of the GPUs, and not of this step alone"


def utilisation(data: Dataset, view: Overview) -> Figure:
    """Return the mean utilisation, as nvidia-smi shows it, 0..1."""
    if not view.gpus:
        return withheld("the step has no GPU")
    share, engine = _mean(view.means["utilisation"]), _mean(view.means["engine"])
    if share is None:
        return withheld("utilisation is not told")
    if shared(data):
        return between(None, share, shared(data))
    if (part := float((~np.isnan(view.means["utilisation"])).mean())) < 1:
        return between(part * share, part * share + 1 - part, f"it is of {_percent(part)} of the GPUs only")
    power = _power_of_limit(view)
    if view.denied.any() or engine is None:
        if power is not None and power >= BUSY_POWER and share >= BUSY_POWER:
            return witnessed(share, f"the power, {_percent(power)} of the limit")
        why = denied(view) if view.denied.any() else "nothing else tells of it: there are no profiling counters"
        return between(None, share, why)
    if abs(engine - share) > APART:
        return between(min(engine, share), max(engine, share), f"engine activity is {_percent(engine)}")
    return witnessed(share, f"engine activity is {_percent(engine)}")


def energy(data: Dataset, view: Overview) -> Figure:
    """Return the energy of the GPUs in J."""
    if not view.gpus:
        return withheld("the step has no GPU")
    known = ~np.isnan(view.energy)
    if not known.any():
        return withheld("no GPU has an energy counter that could be read")
    joules, drawn = float(view.energy[known].sum()), float(np.nansum(view.drawn[known]))
    many = int(known.sum())
    if shared(data):
        return between(None, joules, shared(data))
    if not known.all() or data.wanted > len(data.nodes):
        return between(joules, None, f"the counters of {many} GPUs only were read")
    open_s = view.expected - view.counted
    if (open_s > np.maximum(UNCOUNTED * view.expected, UNCOUNTED_S)).any():
        return between(joules, None, f"up to {float(open_s.max()):.1f} s of the step are not counted")
    if not drawn:
        return between(joules, None, "power, which would confirm it, is not told")
    apart = abs(joules - drawn)
    if apart > ENERGY_APART * max(joules, drawn) + ENERGY_APART_J * many:
        again = f"; the counter began again {int(view.restarts.sum())} times" if view.restarts.any() else ""
        return between(min(joules, drawn), max(joules, drawn), f"counter and power do not agree{again}")
    return witnessed(joules, "the integral of the power")


def coverage(data: Dataset, view: Overview) -> Figure:
    """Return the share of the GPUs' time that is covered by samples with a score, 0..1."""
    if not view.gpus:
        return withheld("the step has no GPU")
    share = view.score().coverage
    if data.wanted > len(data.nodes):
        return between(None, share, f"{data.wanted - len(data.nodes)} of {data.wanted} nodes have no samples")
    if not all(node.facts.complete for node in data.nodes):
        return between(None, share, "the end of the step is not known")
    local = all(str(node.facts.header["job"]) == "local" for node in data.nodes)
    return witnessed(share, "the command's end" if local else "the end of the step in Slurm")


def size(data: Dataset, view: Overview) -> Figure:
    """Return the number of the step's GPUs."""
    seen = len(view.gpus)
    given = [node.facts.header.get("allocated") for node in data.nodes]
    if data.wanted > len(data.nodes):
        return between(seen, None, f"{data.wanted - len(data.nodes)} of {data.wanted} nodes have no samples")
    if any(count is None for count in given):
        return between(seen, None, "no allocation of Slurm says how many there should be")
    wanted = sum(int(count) for count in given if count is not None)
    if wanted != seen:
        return between(min(seen, wanted), max(seen, wanted), f"Slurm gave {wanted} GPUs to the step, {seen} were seen")
    return witnessed(seen, "Slurm's allocation")


def _power_of_limit(view: Overview) -> float | None:
    limits = np.array([gpu.power_limit or np.nan for gpu in view.gpus])
    return _mean(view.means["power"] / limits)


def _mean(values: np.ndarray) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
