"""The screen at the end of a step, and `piolet score show`: one page of text. Returns it; prints nothing."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Literal

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from piolet.base import texts
from piolet.score.advice import percent
from piolet.score.clock import CAUSES, UNNAMED
from piolet.score.figure import Figure
from piolet.score.saturation import COVERAGE, Score
from piolet.score.summary import Summary

_WIDTH = 60
UNSURE_MOST = 0.05  # of the time: above it, what the limit was is not said
# What the time went into: the name, the field of a Score, and how it is drawn. The colours are Okabe and Ito's, which
# people of all kinds of colour vision tell apart; letters say it without colour.
PARTS = (
    ("useful", "useful", "#009E73", "█"),
    ("throttled", "throttled", "#CC79A7", "▚"),
    ("stalled", "stalled", "#E69F00", "▓"),
    ("narrow", "narrow", "#56B4E9", "▒"),
    ("idle", "idle", "#888888", "░"),
    ("unknown", "unexplained", "#BBBBBB", "?"),
)
_RARE = ("throttled", "unknown")


def parts(score: Score) -> Iterator[tuple[str, float, str, str]]:
    """Yield name, share, colour and letter of what the time went into; two of them only where there is any."""
    for name, attribute, colour, block in PARTS:
        part = getattr(score, attribute) or 0.0
        if part >= 0.0005 or name not in _RARE:
            yield name, part, colour, block


def render(summary: Summary, width: int = 100, color: bool = False) -> str:
    """Return the page, with escape sequences only if `color`."""
    file = io.StringIO()
    system: Literal["truecolor"] | None = "truecolor" if color else None
    # No markup: what stands in a data set is text.
    console = Console(file=file, width=width, force_terminal=color, color_system=system, markup=False, emoji=False)
    console.print(_page(summary))
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def share(figure: Figure) -> str:
    """Return a headline figure that is a share: a value, a range, a bound, or that it is unknown."""
    return said(figure, percent)


def said(figure: Figure, text: Callable[[float | None], str]) -> str:
    """Return a headline figure, each number of it by `text`."""
    if figure.value is not None:
        return text(figure.value)
    if figure.is_withheld:
        return "unknown"
    if figure.high is None:
        return f"at least {text(figure.low)}"
    if figure.low is None:
        return f"at most {text(figure.high)}"
    low, high = text(figure.low), text(figure.high)
    return low if low == high else f"{low} to {high}"


def gpus(figure: Figure) -> str:
    """Return the number of GPUs."""
    most = figure.high if figure.low is None else figure.low
    many = "GPU" if most == figure.high == 1 or (most == 1 and figure.high is None) else "GPUs"
    return f"{said(figure, lambda count: f'{count:.0f}')} {many}"


def nodes(summary: Summary) -> str:
    """Return how many nodes there are samples of, and how many there should be."""
    known = len(summary.nodes)
    return f"{known} of {summary.wanted} nodes" if summary.wanted > known else texts.counted(known, "node")


def duration(seconds: float) -> str:
    """Return seconds as people say them."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"


def energy_of(figure: Figure) -> str:
    """Return the step's energy."""
    return said(figure, energy)


def energy(joules: float | None) -> str:
    """Return joules in a fitting unit."""
    if joules is None:
        return "-"
    if joules >= 3.6e9:
        return f"{joules / 3.6e9:.2f} MWh"
    return f"{joules / 3.6e6:.2f} kWh" if joules >= 3.6e5 else f"{joules / 1000:.1f} kJ"


def _page(summary: Summary) -> RenderableType:
    score = summary.score
    parts: list[RenderableType] = []
    if summary.simulated:
        parts.append(Text(f"SIMULATED FIGURES ({summary.simulated}): they say nothing about real GPUs", "bold"))
    if score.gpus == 0:
        parts.append(Text("No GPUs: the host's figures only.", "bold"))
    else:
        parts.append(Text(f"GPU saturation {share(summary.saturation)}", "bold"))
        if summary.saturation.reason:
            parts.append(Text(summary.saturation.reason, "bold"))
        if score.value is not None:
            parts += [_limits(score), _waterfall(summary)]
        elif not summary.utilisation.is_withheld:
            text = f"utilisation {share(summary.utilisation)}; it does not tell how much of a GPU was used"
            parts.append(Text(text))
    parts += [_facts(summary), *_lists(summary)]
    title = f"step {summary.name}" if summary.job != "local" else "local command"
    return Panel(Group(*parts), title=Text(f"piolet score: {title}"), title_align="left")


def _limits(score: Score) -> Text:
    if score.unsure > UNSURE_MOST:
        known = f"; above 60 % in at least {percent(score.above)} of it"
        return Text(f"what limited it is unknown in {percent(score.unsure)} of the time: counters are missing{known}")
    return Text(
        f"limited by compute {percent(score.by_compute)}, memory {percent(score.by_memory)}, "
        f"communication {percent(score.by_network)} of the time; above 60 % in {percent(score.above)} of it"
    )


def bound(score: Score, part: str) -> str:
    """Return what stands before a part of the waterfall where a pipe is missing: it may have been useful."""
    return {"useful": "at least ", "stalled": "at most "}.get(part, "") if score.is_lower_bound else ""


def _waterfall(summary: Summary) -> RenderableType:
    score = summary.score
    bar = Text()
    legend = Text()
    done = 0.0
    for name, part, colour, block in parts(score):
        cells = round((done + part) * _WIDTH) - round(done * _WIDTH)
        bar.append(block * cells, colour)
        done += part
        legend.append(f"{block} ", colour)
        legend.append(f"{name} {bound(score, name)}{percent(part)}   ")
    head = Text(f"\nof the time  (utilisation, as nvidia-smi shows it: {share(summary.utilisation)})")
    return Group(head, bar, legend, Text(""))


def _facts(summary: Summary) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column()
    known = [node.s for node in summary.nodes if node.s is not None]
    on = f"{gpus(summary.size)} on " if summary.score.gpus else ""
    table.add_row("size", f"{on}{nodes(summary)}, {duration(summary.seconds)}")
    if len(known) > 1:
        table.add_row("nodes", f"{percent(min(known))} to {percent(max(known))}, balance {percent(summary.balance)}")
    if summary.slowest:
        table.add_row("lowest", summary.slowest)
    score = summary.score
    if not summary.rated.is_withheld and (score.throttled >= 0.005 or score.clocked < COVERAGE):
        table.add_row("clock", f"{share(summary.rated)} of what GPUs at their highest clock could do{_lost(summary)}")
    if not summary.ofu.is_withheld and (summary.score.ofu or 0) > 0.005:
        text = f"OFU {share(summary.ofu)} (tensor activity times clock)"
        mfu = "" if summary.mfu.is_withheld else f", MFU estimated {share(summary.mfu)}"
        table.add_row("tensor", f"{text}{mfu}")
    if not summary.energy.is_withheld:
        power = "" if summary.power is None else f", mean power per GPU {summary.power:.0f} W"
        table.add_row("energy", f"{energy_of(summary.energy)}{power}")
    host = summary.view.host
    if "cpu" in host and host["cpu"].size:
        import numpy as np

        # Either may be missing: it is by the step's control groups whether there is a figure.
        parts = []
        if not np.isnan(host["cpu"]).all():
            parts.append(f"{float(np.nanmean(host['cpu'])):.1f} cores per node")
        if not np.isnan(host["memory"]).all():
            parts.append(f"at most {float(np.nanmax(summary.view.high['memory'])) / 1e9:.1f} GB of memory")
        if parts:
            table.add_row("host", ", ".join(parts))
    if weights := summary.view.weights.text:
        table.add_row("weights", f"aggregated {percent(summary.aggregated)}, by {weights}")
    table.add_row("source", "; ".join(summary.collectors))
    for name, why in summary.not_used.items():
        table.add_row("", f"not {name}: {why}")
    if summary.cost:
        cores, memory = summary.cost
        table.add_row("cost", f"the sampler took {100 * cores:.2f} % of a core and {memory / 1e6:.0f} MB per node")
    return table


def _lost(summary: Summary) -> str:
    """Return in words what held the clock back."""
    names = {"cap": "a setting", "unnamed": "an unknown cause", "hardware": "hardware protection"}
    limits = [(gpu.power_limit, gpu.power_limit_default) for gpu in summary.view.gpus]
    if lower := [(limit, usual) for limit, usual in limits if 0 < limit < 0.99 * usual]:
        names["power"] = f"power (limited to {lower[0][0]:.0f} of {lower[0][1]:.0f} W)"
    lost = [(getattr(summary.score, cause), names.get(cause, cause)) for cause in (*CAUSES, UNNAMED)]
    texts = [f"{name} {percent(part)}" for part, name in sorted(lost, reverse=True) if part >= 0.005]
    return f"; lost to {', '.join(texts)}" if texts else ""


def _lists(summary: Summary) -> list[RenderableType]:
    parts: list[RenderableType] = []
    if summary.quality:
        parts += [Text(""), Text("data quality", "dim"), *(Text(f"  {line}") for line in summary.quality)]
    if summary.advice:
        parts += [Text(""), Text("advice", "dim")]
        for advice in summary.advice:
            parts.append(Text(f"  {advice.seen}", "bold"))
            parts.append(Text(f"    {advice.do}"))
    return parts
