"""The figures of a report, with matplotlib: the same ones in HTML (as SVG, for who has no script), PNG and PDF.

Colours are those of people of all kinds of colour vision (series.py) and cividis. No global state: figures are made
without pyplot.
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
from piolet.score.report import series
from piolet.score.report.screen import bound, share
from piolet.score.report.series import PHASE_COLOURS, RED, Panel
from piolet.score.summary import Summary

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
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)
    text = text.replace("<svg ", '<svg stroke-linejoin="round" stroke-linecap="butt" ', 1)
    # Attributes instead of styles: the page allows its own style sheet only.
    text = re.sub(r' style="([^"]*)"', _as_attributes, text)
    # Figures share the page: what one refers to by its id must not be another's.
    return re.sub(r'(id="|url\(#|href="#)', rf"\1{name}-", text)


def _as_attributes(style: re.Match[str]) -> str:
    pairs = (part.partition(":") for part in style[1].split(";") if ":" in part)
    return "".join(f' {name.strip()}="{value.strip()}"' for name, _, value in pairs)


def png(figure: Figure, title: str) -> bytes:
    """Return a figure as PNG, white behind, with a title."""
    out = io.BytesIO()
    headed(figure, title)
    with matplotlib.rc_context(_STYLE):
        FigureCanvasAgg(figure)
        figure.savefig(out, format="png", dpi=150, facecolor="white")
    return out.getvalue()


def headed(figure: Figure, title: str) -> None:
    """Write a title above a figure, in room of its own."""
    width, height = figure.get_size_inches()
    room = 0.36
    figure.set_size_inches(width, height + room)
    engine = figure.get_layout_engine()
    if engine is not None:
        marked = 0.17 if figure.texts else 0.0
        engine.set(rect=(0, 0, 1, 1 - (room + marked) / (height + room)))  # type: ignore[call-arg]
    for text in figure.texts:  # the mark of simulated figures
        text.set_y(1 - (room - 0.05) / (height + room))
    figure.text(0.01, 1 - 0.09 / (height + room), title, ha="left", va="top", size=11, weight="bold", parse_math=False)


def pdf(summary: Summary, text: str) -> bytes:
    """Return all figures as one PDF, the summary's text on the first page."""
    out = io.BytesIO()
    about = {"CreationDate": None, "Title": f"Piolet score {summary.name}"}
    with matplotlib.rc_context(_STYLE), PdfPages(out, metadata=about) as pages:
        first = Figure(figsize=(9, 11))
        first.text(0.05, 0.97, text, family="monospace", size=7.2, va="top", parse_math=False)
        pages.savefig(first, facecolor="white")
        for _, title, _, figure in figures(summary):
            headed(figure, title)
            pages.savefig(figure, facecolor="white")
    return out.getvalue()


def _figure(height: float, **options: Any) -> tuple[Figure, Any]:
    figure = Figure(figsize=(9, height), layout="constrained", facecolor="none")
    axes = figure.subplots(**options)
    for each in np.atleast_1d(axes).ravel():
        each.patch.set_alpha(0)
    return figure, axes


def _unit(view: Overview) -> tuple[float, str]:
    if view.seconds > 3 * 3600:
        return 3600, "hours"
    return (60, "minutes") if view.seconds > 180 else (1, "seconds")


def _draw(axes: Any, panel: Panel, times: Any) -> None:
    """Draw bands, the rows where they are few, and the mean."""
    for number, (name, low, high) in enumerate(panel.bands):
        edges = series.drawn(low, np.nanmin), series.drawn(high, np.nanmax)
        axes.fill_between(times, *edges, color=panel.colour, alpha=(0.12, 0.22, 0.34)[number], lw=0, label=name)
    for number, row in enumerate(series.drawn(panel.rows)):
        axes.plot(times, row, color=panel.colour, lw=0.7, alpha=0.45, label=None if number else "each GPU")
    for label, colour, values in ((panel.label, panel.colour, panel.mean), *panel.more):
        dashes = "-" if colour == panel.colour else "--"
        axes.plot(times, series.drawn(values), color=colour, lw=1.8, ls=dashes, label=label)
    axes.set_title(f"{panel.title} ({panel.unit})" if panel.unit else panel.title)
    axes.set_ylim(0, 103) if panel.top else axes.set_ylim(bottom=0)


def _panels(summary: Summary, panels: list[Panel], rows: int, height: float) -> Figure:
    divisor, unit = _unit(summary.view)
    times = series.times(summary.view) / divisor
    figure, axes = _figure(height, nrows=rows, ncols=2, sharex=True)
    for each, panel in zip(axes.ravel(), panels, strict=False):
        if np.isnan(panel.mean).all():
            each.text(0.5, 0.5, "no data", ha="center", transform=each.transAxes)
            each.set_title(panel.title)
        else:
            _draw(each, panel, times)
            each.set_xlim(0, summary.seconds / divisor)
            if panel.more:
                each.legend(fontsize=7, loc="upper right")
    for each in axes.ravel()[len(panels) :]:
        each.axis("off")
    for each in axes.ravel()[: len(panels)][-2:]:
        each.set_xlabel(unit)
        each.xaxis.set_tick_params(labelbottom=True)
    known = [each for each, panel in zip(axes.ravel(), panels, strict=False) if not np.isnan(panel.mean).all()]
    if known and any(panel.bands or len(panel.rows) for panel in panels):
        figure.legend(*known[0].get_legend_handles_labels(), ncols=5, loc="outside lower left", fontsize=8)
    return figure


def _activity(summary: Summary) -> Figure:
    return _panels(summary, list(series.activity(summary)), 3, 6.4)


def _power(summary: Summary) -> Figure:
    return _panels(summary, list(series.power(summary)), 1, 2.8)


def _host(summary: Summary) -> Figure:
    panels = list(series.host(summary))
    view = summary.view
    edges = series.times(view)
    divisor, unit = _unit(view)
    rows = -(-len(panels) // 2)
    figure, axes = _figure(0.4 + 1.8 * rows, nrows=rows, ncols=2, sharex=True, squeeze=False)
    for each, panel in zip(axes.ravel(), panels, strict=False):
        for label, colour, values in ((panel.label, panel.colour, panel.mean), *panel.more):
            dashes = "-" if colour == panel.colour else "--"
            each.plot(edges / divisor, series.drawn(values), color=colour, ls=dashes, lw=1.3, label=label)
        each.set_title(f"{panel.title} ({panel.unit})" if panel.unit else panel.title)
        each.set_ylim(bottom=0)
        each.set_xlim(0, view.seconds / divisor)
        each.legend(fontsize=7, loc="upper right")
    for each in axes.ravel()[len(panels) :]:
        each.axis("off")
    for each in axes[-1]:
        each.set_xlabel(unit)
    return figure


def _combined(summary: Summary) -> Figure:
    view = summary.view
    divisor, unit = _unit(view)
    times = series.times(view) / divisor
    figure, (axes, strip) = _figure(4.2, nrows=2, sharex=True, height_ratios=[9, 1])
    done = np.zeros(len(times))
    for name, colour, values in series.stack(summary):
        top = done + 100 * np.nan_to_num(series.drawn(values))
        axes.fill_between(times, done, top, color=colour, lw=0, label=name)
        done = top
    saturation = 100 * series.drawn(np.nanmean(view.lines["s"], axis=0))
    axes.plot(times, saturation, color=_INK, lw=1.4, label="saturation")
    utilisation = 100 * series.drawn(np.nanmean(view.lines["utilisation"], axis=0))
    axes.plot(times, utilisation, color=_INK, lw=1, ls=(0, (1, 2)), label="utilisation")
    if weights := view.weights.text:
        aggregated = 100 * series.drawn(view.aggregate())
        axes.plot(times, aggregated, color=RED, lw=1.4, ls=(0, (3, 1)), label=f"aggregated by {weights}")
    axes.set_ylim(0, 103)
    axes.set_xlim(0, view.seconds / divisor)
    axes.set_ylabel("% of the GPUs' time")
    figure.legend(*axes.get_legend_handles_labels(), ncols=4, loc="outside lower left", fontsize=8)
    _phases(strip, summary, divisor, unit)
    return figure


def _phases(axes: Any, summary: Summary, divisor: float, unit: str) -> None:
    for phase in summary.phases:
        start, length = phase.start / divisor, (phase.end - phase.start) / divisor
        axes.barh(0, length, left=start, color=PHASE_COLOURS.get(phase.what, RED), height=0.8, ec="none")
        if length * divisor > 0.12 * summary.seconds:
            axes.text(start + length / 2, 0, phase.what, ha="center", va="center", size=8, color="white", weight="bold")
    axes.set_ylim(-0.5, 0.5)
    axes.set_yticks([0], ["phases"])
    axes.grid(visible=False)
    axes.set_xlabel(unit)


def _heat(summary: Summary) -> Figure:
    divisor, unit = _unit(summary.view)
    found = series.grouped(series.heat(summary))
    pictures = [("mean", found.mean)]
    if found.worst is not found.mean:
        pictures.insert(0, ("worst", found.worst))
    height = min(7.5, 1.6 + 0.22 * len(found.names))
    figure, axes = _figure(height, ncols=len(pictures), sharey=True, squeeze=False)
    extent = (0, summary.seconds / divisor, len(found.names) - 0.5, -0.5)
    options: dict[str, Any] = {"aspect": "auto", "cmap": "cividis", "interpolation": "nearest"}
    for each, (name, values) in zip(axes[0], pictures, strict=True):
        image = each.imshow(100 * values, norm=Normalize(0, 100), extent=extent, **options)
        if len(pictures) > 1:
            each.set_title(f"{name} of each row")
        each.set_xlabel(f"{unit}; a row is {'one ' if found.what in ('GPU', 'node') else ''}{found.what}")
        each.grid(visible=False)
    shown = np.unique(np.linspace(0, len(found.names) - 1, min(len(found.names), 16)).round().astype(int))
    axes[0][0].set_yticks(shown, [found.names[i] for i in shown], fontsize=7)
    figure.colorbar(image, ax=axes, label="saturation (%)", pad=0.01)
    return figure


def _waterfall(summary: Summary) -> Figure:
    figure, axes = _figure(1.9)
    done = 0.0
    for name, colour, part in series.shares(summary):
        label = f"{bound(summary.score, name)}{100 * part:.0f} %"
        edge = _FAINT if colour == series.NO_DATA else "none"
        axes.barh(0, 100 * part, left=done, color=colour, ec=edge, height=0.6, label=f"{name} {label}")
        if part > 0.07:
            ink = "white" if name in ("compute", "useful") else "#202020"
            axes.text(done + 50 * part, 0, f"{name}\n{label}", ha="center", va="center", size=8, color=ink)
        done += 100 * part
    said = summary.utilisation
    if (at := said.high if said.value is None else said.value) is not None:
        axes.plot([100 * at, 100 * at], [0.3, 0.58], color=_INK, lw=1.4)
        axes.text(100 * at - 0.6, 0.47, f"utilisation {share(said)}", ha="right", va="center", size=8)
    axes.set_xlim(0, 100)
    axes.set_ylim(-0.4, 0.62)
    axes.set_yticks([])
    axes.set_xlabel(f"% of the GPUs' time; saturation {share(summary.saturation)}")
    figure.legend(*axes.get_legend_handles_labels(), ncols=6, loc="outside lower left", fontsize=7)
    return figure


def _has_gpus(summary: Summary) -> bool:
    return bool(summary.view.gpus) and summary.view.rows > 0


def _has_score(summary: Summary) -> bool:
    return _has_gpus(summary) and summary.score.value is not None


def _has_host(summary: Summary) -> bool:
    return any(True for _ in series.host(summary))


_TABLE: tuple[tuple[str, str, str, Draw, Callable[[Summary], bool]], ...] = (
    (
        "waterfall",
        "Where the time went",
        "Utilisation counts any time in which a kernel ran. Narrow: it ran on few SMs. Stalled: the SMs had work and "
        "waited. Throttled: busy, at a clock below the highest; with the rest it is the saturation, the busiest of "
        "compute, memory and communication.",
        _waterfall,
        _has_score,
    ),
    (
        "saturation",
        "Saturation over time",
        "Colour is what was used, by what limited each GPU; grey is what was lost. Line: saturation. Dots: "
        "utilisation. Below: phases, found as changes of the series.",
        _combined,
        _has_score,
    ),
    (
        "activity",
        "Activity of all GPUs",
        "Thick: the mean. Light: from the lowest to the highest sample, so bursts are seen. Thin: each GPU, or of many "
        "the bands that hold 90 % and 50 % of them.",
        _activity,
        _has_gpus,
    ),
    (
        "heat",
        "Saturation by GPU and time",
        "Bright is saturated. White: no data. Where a row is several GPUs or nodes: their worst and their mean.",
        _heat,
        _has_score,
    ),
    ("power", "Power and memory", "Thick: the mean of all GPUs.", _power, _has_gpus),
    ("host", "The host", "Mean of all nodes. Network figures are always the whole node's.", _host, _has_host),
)
