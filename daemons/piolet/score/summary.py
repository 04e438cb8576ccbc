"""Everything that a report says of a step, computed once: screen, HTML, JSON and figures only lay it out."""

from __future__ import annotations

import dataclasses
import math
import pwd
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from piolet.base import texts
from piolet.base.errors import ScoreError
from piolet.samples.dataset import Dataset, open_dataset
from piolet.score import headlines, saturation
from piolet.score.advice import Advice, advise, used
from piolet.score.figure import Figure
from piolet.score.overview import Overview, overview
from piolet.score.peaks import Peaks
from piolet.score.phases import phases
from piolet.score.saturation import UNSURE, Score, Weights
from piolet.steps import identity

MIXED = 0.1
IDLE = 0.5  # of a phase: whatever limits the rest, it is not what the phase is
HEADLINES = ("saturation", "utilisation", "energy", "coverage", "size", "rated", "ofu", "mfu")
_ASIDE = ("saturation", "ofu", "mfu")  # their reasons stand beside the figures, or in the documentation
_NAMES = {"rated": "saturation at the highest clock"}


@dataclass(frozen=True)
class NamedPhase:
    """A phase in seconds since the start, with means over all GPUs, and in a word what it was."""

    start: float
    end: float
    what: str
    s: float
    c: float
    m: float
    n: float
    engine: float


@dataclass(frozen=True)
class NodeLine:
    """A node in a table; None is unknown."""

    name: str
    gpus: int
    s: float | None
    least: float | None
    most: float | None
    coverage: float
    energy: float | None


@dataclass(frozen=True)
class Summary:
    """The report's content. Energy in J, shares 0..1, `balance` is mean / max of the GPUs' saturation.

    saturation, utilisation, energy, coverage, size    the headline figures: what may be said of the step. `score` has
               the parts behind the first of them, over the time that is covered
    rated      the saturation at the highest clocks; `ofu` and `mfu` see headlines.py

    restarts   how often the job had been requeued
    job_name, user, environment, command    '' where it is not known
    began      seconds since 1970
    wanted     how many nodes the step had, those without samples included
    """

    job: str
    step: str
    restarts: int
    job_name: str
    user: str
    environment: str
    began: float
    label: str
    command: str
    simulated: str
    collectors: tuple[str, ...]
    not_used: dict[str, str]
    seconds: float
    score: Score
    saturation: Figure
    utilisation: Figure
    energy: Figure
    coverage: Figure
    size: Figure
    rated: Figure
    ofu: Figure
    mfu: Figure
    sm: float | None
    phases: tuple[NamedPhase, ...]
    nodes: tuple[NodeLine, ...]
    wanted: int
    slowest: str
    balance: float
    power: float | None
    advice: tuple[Advice, ...]
    quality: tuple[str, ...]
    cost: tuple[float, float] | None
    view: Overview

    @property
    def aggregated(self) -> float | None:
        """The mean of the aggregated picture, 0..1; None: nothing is covered."""
        return _mean(self.view.aggregate()) if self.score.value is not None else None

    @property
    def name(self) -> str:
        """The name of this run of the step."""
        return identity.run_name(self.job, self.step, self.restarts)

    @property
    def title(self) -> str:
        """What a page is called: the job, by its name if it is known, and the step."""
        step = "local command" if self.job == "local" else f"step {self.name}"
        named = self.job_name or self.label
        return f"{named} ({step})" if named else step

    def as_dict(self) -> dict[str, Any]:
        """Return the summary as plain values for JSON, without the timelines."""
        content = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "view"}
        content["score"] = dataclasses.asdict(content["score"])
        for name in HEADLINES:
            content[name] = content[name].as_dict()
        for name in ("phases", "nodes", "advice"):
            content[name] = [dataclasses.asdict(item) for item in content[name]]
        plain: dict[str, Any] = _plain(content)
        return plain


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def summarise(
    data: Dataset,
    calibrations: Mapping[str, Peaks] | None = None,
    detail: bool = True,
    weights: Weights | None = None,
) -> Summary:
    """Read a data set and return what there is to say; without `detail` not all of what can be drawn. `weights` are of
    the aggregated picture."""
    while True:
        try:
            view = overview(data, calibrations, detail)
            view.weights = weights or Weights()
            break
        except ScoreError:
            if not data.is_stale:
                raise
            data = open_dataset(data.directory)
    headers = [node.facts.header for node in data.nodes]
    origin = data.origin
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a mean of nothing is NaN, and becomes None
        per_gpu = view.per_gpu()
        return Summary(
            job=str(headers[0]["job"]),
            step=str(headers[0]["step"]),
            restarts=headers[0].get("restarts", 0),
            label=str(headers[0]["label"]),
            job_name=origin.get("name", ""),
            user=origin.get("user", "") or _user(headers[0].get("uid", -1)),
            environment=origin.get("environment", ""),
            began=data.start / 1e9,
            command=str(headers[0]["command"]) or origin.get("command", ""),
            simulated=data.simulated,
            collectors=tuple(sorted({f"{c['name']} ({c['source']})" for h in headers for c in h["collectors"]})),
            not_used={key: text for header in headers for key, text in header["not_used"].items()},
            seconds=view.seconds,
            score=view.score(),
            saturation=headlines.saturation(data, view),
            utilisation=headlines.utilisation(data, view),
            energy=headlines.energy(data, view),
            coverage=headlines.coverage(data, view),
            size=headlines.size(data, view),
            rated=headlines.rated(data, view),
            ofu=headlines.ofu(data, view),
            mfu=headlines.mfu(data, view),
            sm=_mean(view.means["sm"]),
            phases=tuple(_phases(view)),
            nodes=tuple(_nodes(view, per_gpu)),
            wanted=data.wanted,
            slowest=_slowest(view, per_gpu),
            balance=math.nan if np.isnan(per_gpu).all() else saturation.balance(per_gpu),
            power=_mean(view.means["power"]),
            advice=tuple(advise(view)),
            quality=tuple(_quality(data, view)),
            cost=_cost(data),
            view=view,
        )


def _user(uid: Any) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, TypeError, OverflowError):
        return ""


def _run_of(header: dict[str, Any]) -> str:
    return identity.run_name(str(header["job"]), str(header["step"]), header.get("restarts", 0))


def _mean(array: Any) -> float | None:
    value = float(np.nanmean(array)) if len(array) else math.nan
    return None if math.isnan(value) else value


def _phases(view: Overview) -> list[NamedPhase]:
    if not len(view.gpus):
        return []
    lines = [np.nanmean(view.lines[name], axis=0) for name in ("s", "c", "m", "n", "engine", "sm")]
    series = np.stack(lines, axis=1)
    unsure = view.score().is_lower_bound
    result = []
    for phase in phases(series):
        s, c, m, n, engine, sm = phase.means
        start, end = (
            min(max(0.0, view.origin + number * view.bin_seconds), view.seconds) for number in (phase.start, phase.end)
        )
        what = _name(s, c, m, n, engine, sm)
        if unsure and what in ("stalled", "memory"):
            what = "unknown"  # it may have been the pipe that is missing
        result.append(NamedPhase(start, end, what, s, c, m, n, engine))
    return result


def _name(s: float, c: float, m: float, n: float, engine: float, sm: float) -> str:
    if max(s, engine, sm) < MIXED:
        return "idle"
    if 1 - max(engine, sm, s) > IDLE:
        return "mostly idle"
    best = max(c, m, n)
    if best < 0.5 * max(engine, s):
        # Less than half of the busy time is explained by a limit: say where the rest went.
        rest = {"waiting for the host": 1 - engine, "few SMs": engine - max(sm, s), "stalled": max(sm - s, 0)}
        return max(rest, key=lambda key: rest[key])
    return "compute" if c == best else "memory" if m == best else "communication"


def _nodes(view: Overview, per_gpu: Any) -> list[NodeLine]:
    """Return a line of each node; GPUs of a node follow each other."""
    places = {name: place for place, name in enumerate(dict.fromkeys(view.nodes))}
    owner = np.array([places[gpu.node] for gpu in view.gpus], int)
    size = len(places)

    def sums(values: Any) -> Any:
        return np.bincount(owner, weights=np.nan_to_num(values), minlength=size)

    gpus, covered, s = np.bincount(owner, minlength=size), sums(view.totals.covered), sums(view.totals.s)
    expected, energy, told = sums(view.expected), sums(view.energy), sums(~np.isnan(view.energy))
    least, most = np.full(size, np.nan), np.full(size, np.nan)
    np.fmin.at(least, owner, per_gpu)
    np.fmax.at(most, owner, per_gpu)
    return [
        NodeLine(
            name=name,
            gpus=int(gpus[i]),
            s=float(s[i] / covered[i]) if covered[i] else None,
            least=None if np.isnan(least[i]) else float(least[i]),
            most=None if np.isnan(most[i]) else float(most[i]),
            coverage=float(covered[i] / max(expected[i], covered[i])) if expected[i] > 0 else 0.0,
            energy=float(energy[i]) if told[i] else None,
        )
        for name, i in places.items()
    ]


def _slowest(view: Overview, per_gpu: Any) -> str:
    if len(per_gpu) < 2 or np.isnan(per_gpu).all():
        return ""
    worst = int(np.nanargmin(per_gpu))
    gpu = view.gpus[worst]
    return f"{gpu.node} GPU {gpu.index}, {100 * per_gpu[worst]:.0f} %"


def _quality(data: Dataset, view: Overview) -> list[str]:
    lines = []
    score = view.score()
    if len(view.gpus):
        lines.append(f"{100 * score.coverage:.1f} % of the GPUs' time is covered by samples with a score")
    if score.is_range and score.value is not None:
        lines.append("less than 95 %: the saturation is given as a range, whatever the missing time was")
    figures = {name: getattr(headlines, name)(data, view) for name in HEADLINES} if view.rows else {}
    by_reason: dict[str, list[str]] = {}
    for name, figure in figures.items():
        if figure.reason and name not in _ASIDE and figure.reason != figures["saturation"].reason:
            by_reason.setdefault(figure.reason, []).append(_NAMES.get(name, name))
    if thinned := max(node.facts.thinned for node in data.nodes):
        most = f"{thinned:.1f} s" if thinned < 60 else f"{thinned / 60:.1f} min"
        lines.append(
            f"thinned: samples are kept as means over up to {most}; the figures were made of all of them before"
            if not view.remade
            else f"thinned: figures of {texts.counted(len(view.remade), 'node')} are made of means over up to {most}"
        )
    lines += [f"{', '.join(names)} not confirmed: {reason}" for reason, names in by_reason.items()]
    if score.is_lower_bound and score.most < 1 - UNSURE:
        lines.append(f"the saturation is at most {100 * score.most:.0f} %, since no pipe works more than its SMs")
    steps = sorted({_run_of(node.facts.header) for node in data.nodes})
    if len(steps) > 1:
        lines.append(f"samples of {len(steps)} steps lie in one directory: {', '.join(steps[:4])}")
    if data.wanted > len(data.nodes):
        missing = data.wanted - len(data.nodes)
        lines.append(f"{missing} of {data.wanted} nodes have no samples: what is said here is of the others")
    lines += headlines.unseen(data)
    full = [text for node in data.nodes if (text := headlines.disk_full(node))]
    lines += [text for text in full if "saturation" not in figures or text not in figures["saturation"].reason]
    if (other := headlines.shared(data)) and other not in by_reason:
        lines.append(other)
    open_ends = [node.name for node in data.nodes if not node.facts.complete]
    if open_ends:
        many = "1 node has" if len(open_ends) == 1 else f"{len(open_ends)} nodes have"
        lines.append(f"{many} no end: the step runs still, or was killed ({open_ends[0]})")
    restarts = sum(e["event"] == "restart" for node in data.nodes for e in node.facts.events)
    if restarts:
        lines.append(f"the sampler was restarted {restarts} times; the time between is not covered")
    late = sum(node.facts.quality.get("late_ticks", 0) for node in data.nodes)
    ticks = sum(node.facts.quality.get("ticks", 0) for node in data.nodes)
    if late:
        worst = max(node.facts.quality.get("worst_late_s", 0.0) for node in data.nodes)
        lines.append(f"{late} of {ticks} samples were late by more than half a period, at worst by {worst:.3f} s")
    dropped = sum(node.facts.quality.get("dropped_frames", 0) for node in data.nodes)
    if dropped:
        lines.append(
            f"{dropped} frames, each of up to a second of samples, were dropped: the file system did not keep up"
        )
    failed = [event["text"] for node in data.nodes for event in node.facts.events if event["event"] == "error"]
    if failed:
        lines.append(f"a collector failed {len(failed)} times: {failed[0]}")
    blanks: dict[tuple[str, str], int] = {}
    for node in data.nodes:
        for quantity, reasons in node.facts.quality.get("blanks", {}).items():
            for reason, count in reasons.items():
                blanks[quantity, reason] = blanks.get((quantity, reason), 0) + count
    by_blank: dict[str, list[str]] = {}
    for quantity, reason in blanks:
        by_blank.setdefault(reason, []).append(quantity)
    for reason, names in by_blank.items():
        count = sum(blanks[name, reason] for name in names)
        some = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        lines.append(f"{count} values missing ({reason}): {some}")
    if any(not gpu.peaks.is_known for gpu in view.gpus if gpu.model):
        lines.append("the model's link bandwidths are not known here, so communication is not judged")
    if data.wanted > 1 and view.gpus and not view.nics:
        lines.append("no network interface told its line rate, so communication between nodes is not judged")
    if score.unexplained > UNSURE:
        part = f"{100 * score.unexplained:.0f} %"
        lines.append(f"engine or SM activity is missing: what became of {part} of the time is unknown")
    if len(view.gpus) and not view.rows:
        if len(view.gpus) > len(headlines.unseen(data)):
            lines.append("no sample was taken: the step was too short, or its GPUs did not answer")
    elif len(view.gpus) and score.value is None and used(view).any() and not view.denied.any():
        lines.append("no profiling counters: saturation cannot be told from utilisation")
    return lines


def _cost(data: Dataset) -> tuple[float, float] | None:
    """Return the worst node's share of a core and its resident bytes; of less than a second a share says nothing."""
    long = [node.facts.quality for node in data.nodes if node.facts.end - node.facts.start >= 1e9]
    known = [quality for quality in long if "process_cores" in quality]
    if not known:
        return None
    return max(q["process_cores"] for q in known), max(q["rss_max_bytes"] for q in known)
