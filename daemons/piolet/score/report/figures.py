"""The figures of a report, with matplotlib: the same ones in HTML (as SVG), PNG and PDF.

Colours are Okabe and Ito's and cividis, which people of all kinds of colour vision tell apart; lines also differ in
their dashes. No global state: figures are made without pyplot. With more than 16 GPUs single lines give way to
bands of percentiles, and with more than 256 the rows of the heat map are nodes.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from piolet.score.overview import Overview
from piolet.score.report.screen import bound, parts, share
from piolet.score.summary import Summary

BLUE, ORANGE, GREEN, SKY = "#0072B2", "#E69F00", "#009E73", "#56B4E9"
PINK, RED, GREY = "#CC79A7", "#D55E00", "#888888"
PHASE_COLOURS = {"compute": BLUE, "memory": ORANGE, "communication": PINK, "idle": GREY, "few SMs": SKY}
PHASE_COLOURS |= {"stalled": RED, "unknown": GREY}
_LINES_MAX = 16
_ROWS_MAX = 256
# Two greys that stand for "the text's colour" and "a faint line": the page turns them into its own.
_INK, _FAINT = "#202124", "#d8d9da"
_STYLE: Any = {
    "font.size": 9,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.titlecolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "text.color": _INK,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "piolet",
    "pdf.fonttype": 42,
}
_ACTIVITY = (
    ("utilisation", "GPU utilisation"),
    ("sm", "SM activity"),
    ("occupancy", "SM occupancy"),
    ("dram", "DRAM activity"),
    ("tensor", "tensor activity"),
    ("nvlink", "NVLink"),
)
Draw = Callable[[Summary], Figure]


def figures(summary: Summary) -> Iterator[tuple[str, str, str, Figure]]:
    """Yield name, title, caption and the figure, in the order of the report."""
    with warnings.catch_warnings(), matplotlib.rc_context(_STYLE):
        warnings.simplefilter("ignore", RuntimeWarning)
        for name, title, caption, draw, wanted in _TABLE:
            if wanted(summary):
                figure = draw(summary)
                if summary.simulated:
                    _mark(figure, f"simulated: {summary.simulated}")
                yield name, title, caption, figure


def _mark(figure: Figure, text: str) -> None:
    """Write above the axes, in room of its own, that figures are simulated."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.set(rect=(0, 0, 1, 1 - 0.17 / figure.get_size_inches()[1]))  # type: ignore[call-arg]
    figure.text(0.995, 0.995, text, ha="right", va="top", color=RED, size=8)


def svg(figure: Figure, name: str) -> str:
    """Return a figure as SVG for a page: no size of its own, text and faint lines in the page's colours."""
    out = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        FigureCanvasSVG(figure)
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r'\1 role="img"', text, count=1)
    text = text.replace(_INK, "currentColor").replace(_FAINT, "var(--faint)")
    text = re.sub(r"(?<=[ :\"'])'?DejaVu Sans'?(, [^;\"]*)?", "var(--font)", text)
    # Figures share the page: what one refers to by its id must not be another's.
    return re.sub(r'(id="|url\(#|href="#)', rf"\1{name}-", text)


def png(figure: Figure) -> bytes:
    """Return a figure as PNG, white behind."""
    out = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        FigureCanvasAgg(figure)
        figure.savefig(out, format="png", dpi=150, facecolor="white")
    return out.getvalue()


def pdf(summary: Summary, text: str) -> bytes:
    """Return all figures as one PDF, the summary's text on the first page."""
    out = io.BytesIO()
    about = {"CreationDate": None, "Title": f"Piolet score {summary.name}"}
    with matplotlib.rc_context(_STYLE), PdfPages(out, metadata=about) as pages:
        first = Figure(figsize=(9, 11))
        first.text(0.05, 0.97, text, family="monospace", size=7.2, va="top", parse_math=False)
        pages.savefig(first, facecolor="white")
        for _, title, _, figure in figures(summary):
            figure.suptitle(title, x=0.01, ha="left", size=11)
            pages.savefig(figure, facecolor="white")
    return out.getvalue()


def _figure(height: float, **options: Any) -> tuple[Figure, Any]:
    figure = Figure(figsize=(9, height), layout="constrained", facecolor="none")
    axes = figure.subplots(**options)
    for each in np.atleast_1d(axes).ravel():
        each.patch.set_alpha(0)
    return figure, axes


def _times(view: Overview, lines: Any = None) -> tuple[Any, str]:
    unit, name = (1, "seconds") if view.seconds <= 180 else (60, "minutes")
    if view.seconds > 3 * 3600:
        unit, name = 3600, "hours"
    bins = next(iter((lines or view.lines).values())).shape[1]
    return (np.arange(bins) + 0.5) * view.seconds / bins / unit, name


def _bundle(axes: Any, times: Any, values: Any, colour: str) -> None:
    """Draw all GPUs and their mean: single lines where they are few, bands of percentiles where they are many."""
    if len(values) <= _LINES_MAX:
        for line in values:
            axes.plot(times, line, color=colour, lw=0.6, alpha=0.35)
    else:
        for low, high, alpha in ((0, 100, 0.12), (5, 95, 0.2), (25, 75, 0.3)):
            edges = np.nanpercentile(values, [low, high], axis=0)
            axes.fill_between(times, edges[0], edges[1], color=colour, alpha=alpha, lw=0)
    axes.plot(times, np.nanmean(values, axis=0), color=colour, lw=1.6)


def _activity(summary: Summary) -> Figure:
    view = summary.view
    times, unit = _times(view)
    figure, axes = _figure(6.2, nrows=3, ncols=2, sharex=True)
    for each, (name, title) in zip(axes.ravel(), _ACTIVITY, strict=True):
        values = view.lines[name]
        if name == "nvlink":
            values = values / 1e9
        if np.isnan(values).all():
            each.text(0.5, 0.5, "no data", ha="center", transform=each.transAxes)
        else:
            _bundle(each, times, values * (1 if name == "nvlink" else 100), BLUE)
        each.set_title(f"{title} ({'GB/s, busier direction' if name == 'nvlink' else '%'})")
        each.set_ylim(bottom=0) if name == "nvlink" else each.set_ylim(0, 103)
    for each in axes[-1]:
        each.set_xlabel(unit)
    return figure


def _combined(summary: Summary) -> Figure:
    view = summary.view
    times, unit = _times(view)
    figure, (axes, strip) = _figure(4.2, nrows=2, sharex=True, height_ratios=[9, 1])
    s = 100 * view.lines["s"]
    edges = np.nanpercentile(s, [5, 95], axis=0) if len(s) > 1 else np.stack([s[0], s[0]])
    axes.fill_between(times, edges[0], edges[1], color=GREEN, alpha=0.2, lw=0, label="saturation, 5 % to 95 % of GPUs")
    lines: tuple[tuple[str, str, str, Any, float], ...] = (
        ("utilisation", "utilisation", GREY, (0, (1, 1)), 1.2),
        ("c", "compute", BLUE, "--", 1.1),
        ("m", "memory", ORANGE, "-.", 1.1),
        ("n", "communication", PINK, (0, (5, 1, 1, 1, 1, 1)), 1.1),
        ("s", "saturation", GREEN, "-", 2.0),
    )
    if text := view.weights.text:
        lines = (*lines, ("weighted", f"aggregated by {text}", RED, (0, (3, 1)), 1.6))
    for name, label, colour, dashes, width in lines:
        axes.plot(times, 100 * np.nanmean(view.lines[name], axis=0), color=colour, ls=dashes, lw=width, label=label)
    axes.set_ylim(0, 103)
    axes.set_ylabel("% (mean of all GPUs)")
    figure.legend(*axes.get_legend_handles_labels(), ncols=3, loc="outside upper left", fontsize=8)
    _phases(strip, summary, times, unit)
    return figure


def _phases(axes: Any, summary: Summary, times: Any, unit: str) -> None:
    scale = float(times[0]) / (summary.view.bin_seconds / 2) if summary.view.bin_seconds else 1.0
    for phase in summary.phases:
        start, length = phase.start * scale, (phase.end - phase.start) * scale
        axes.barh(0, length, left=start, color=PHASE_COLOURS.get(phase.what, RED), height=0.8, ec="none")
        if length > 0.12 * summary.seconds * scale:
            axes.text(start + length / 2, 0, phase.what, ha="center", va="center", size=8, color="white", weight="bold")
    axes.set_ylim(-0.5, 0.5)
    axes.set_yticks([0], ["phases"])
    axes.grid(visible=False)
    axes.set_xlabel(unit)


def _heat(summary: Summary) -> Figure:
    view = summary.view
    times, unit = _times(view)
    values = 100 * view.lines["s"]
    labels = [f"{gpu.node}:{gpu.index}" for gpu in view.gpus]
    what = "GPUs"
    if len(values) > _ROWS_MAX:
        owners = np.array([gpu.node for gpu in view.gpus])
        labels = list(dict.fromkeys(owners))
        values, what = np.stack([np.nanmean(values[owners == name], axis=0) for name in labels]), "nodes (mean of GPUs)"
    figure, axes = _figure(min(6.5, 1.6 + 0.22 * len(values)))
    step = float(times[1] - times[0]) if len(times) > 1 else 1.0
    extent = (times[0] - step / 2, times[-1] + step / 2, len(values) - 0.5, -0.5)
    options: dict[str, Any] = {"aspect": "auto", "cmap": "cividis", "interpolation": "nearest"}
    image = axes.imshow(values, norm=Normalize(0, 100), extent=extent, **options)
    shown = np.unique(np.linspace(0, len(labels) - 1, min(len(labels), 16)).round().astype(int))
    axes.set_yticks(shown, [labels[i] for i in shown], fontsize=7)
    axes.set_xlabel(f"{unit}; rows: {what}")
    axes.grid(visible=False)
    figure.colorbar(image, ax=axes, label="saturation (%)", pad=0.01)
    return figure


def _waterfall(summary: Summary) -> Figure:
    score = summary.score
    figure, axes = _figure(1.9)
    done = 0.0
    for name, of_all, colour, _ in parts(score):
        part = 100 * of_all
        label = f"{bound(score, name)}{part:.0f} %"
        axes.barh(0, part, left=done, color=colour, height=0.6, label=f"{name} {label}")
        if part > 7:
            axes.text(done + part / 2, 0, f"{name}\n{label}", ha="center", va="center", size=8, color="black")
        done += part
    said = summary.utilisation
    if (at := said.high if said.value is None else said.value) is not None:
        axes.plot([100 * at, 100 * at], [0.3, 0.58], color=_INK, lw=1.4)
        axes.text(100 * at - 0.6, 0.47, f"utilisation {share(said)}", ha="right", va="center", size=8)
    axes.set_xlim(0, 100)
    axes.set_ylim(-0.4, 0.62)
    axes.set_yticks([])
    axes.set_xlabel(f"% of the GPUs' time; saturation {share(summary.saturation)}")
    return figure


def _power(summary: Summary) -> Figure:
    view = summary.view
    times, unit = _times(view)
    figure, axes = _figure(2.6, ncols=2, sharex=True)
    memory = view.lines["memory_used"] / 2**30
    for each, values, title in ((axes[0], view.lines["power"], "power (W)"), (axes[1], memory, "device memory (GiB)")):
        if np.isnan(values).all():
            each.text(0.5, 0.5, "no data", ha="center", transform=each.transAxes)
        else:
            known = ~np.isnan(values).all(axis=0)
            _bundle(each, times[known], values[:, known], RED)
        each.set_title(title)
        each.set_ylim(bottom=0)
        each.set_xlabel(unit)
    return figure


def _host(summary: Summary) -> Figure:
    view = summary.view
    times, name = _times(view, view.host)
    figure, axes = _figure(5.6, nrows=3, ncols=2, sharex=True)
    panels = (
        ("cores in use", 1.0, (("cpu", "per node"),)),
        ("memory (GB)", 1e-9, (("memory", "all"), ("memory_anon", "without page cache"))),
        ("I/O (MB/s)", 1e-6, (("read", "read"), ("write", "written"))),
        ("network (MB/s)", 1e-6, (("net_rx", "received"), ("net_tx", "sent"))),
        ("tasks that waited for the CPU (% of time)", 100.0, (("cpu_pressure", "some waited"),)),
        ("tasks that waited for more (% of time)", 100.0, (("memory_pressure", "memory"), ("io_pressure", "I/O"))),
    )
    styles = ((BLUE, "-"), (ORANGE, "--"), (GREEN, "-."), (PINK, ":"))
    for each, (title, factor, lines) in zip(axes.ravel(), panels, strict=True):
        for (key, label), (colour, dashes) in zip(lines, styles, strict=False):
            mean = np.nanmean(view.host[key], axis=0) * factor
            known = ~np.isnan(mean)
            each.plot(times[known], mean[known], color=colour, ls=dashes, lw=1.3, label=label)
        each.set_title(title)
        each.set_ylim(bottom=0)
        each.legend(fontsize=7, loc="upper right")
    for each in axes[-1]:
        each.set_xlabel(name)
    return figure


def _has_gpus(summary: Summary) -> bool:
    return bool(summary.view.gpus) and summary.view.rows > 0


def _has_score(summary: Summary) -> bool:
    return _has_gpus(summary) and summary.score.value is not None


def _has_host(summary: Summary) -> bool:
    return any(not np.isnan(values).all() for values in summary.view.host.values())


_TABLE: tuple[tuple[str, str, str, Draw, Callable[[Summary], bool]], ...] = (
    (
        "waterfall",
        "Where the time went",
        "Utilisation counts any time in which a kernel ran. Narrow: it ran on few SMs. Stalled: the SMs had work and "
        "waited. Useful is the saturation: the busiest of compute, memory and communication.",
        _waterfall,
        _has_score,
    ),
    (
        "saturation",
        "Saturation over time",
        "The mean over all GPUs; below it the phases, found as changes of the series.",
        _combined,
        _has_score,
    ),
    (
        "activity",
        "Activity of all GPUs",
        "Thick: the mean. Thin: single GPUs, or for many of them bands that hold all, 90 % and 50 % of them.",
        _activity,
        _has_gpus,
    ),
    ("heat", "Saturation by GPU and time", "Bright is saturated. White: no data.", _heat, _has_score),
    ("power", "Power and memory", "Thick: the mean of all GPUs.", _power, _has_gpus),
    ("host", "The host", "The step's cgroup, mean of all nodes; network figures are the node's.", _host, _has_host),
)
