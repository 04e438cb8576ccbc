"""The report as one HTML file: works offline and for years, asks nobody for anything, prints well.

Who has no script has the figures as pictures; the script shows the values under the pointer, zooms, sorts tables and
switches between light and dark. What keeps a page harmless is in shell.py.
"""

from __future__ import annotations

import time
import warnings

from piolet.score.advice import percent
from piolet.score.report import series, shell
from piolet.score.report.content import content
from piolet.score.report.figures import figures, svg
from piolet.score.report.screen import bound, duration, energy, energy_of, gpus, nodes, share
from piolet.score.report.shell import escaped
from piolet.score.summary import Summary

_ROWS_MAX, _NAMES_MOST = 2048, 4
_TWO = ("activity", "power", "host")  # figures with two columns of panels


def render(summary: Summary) -> str:
    """Return the page."""
    drawn = [
        (name, heading, caption, svg(figure, name))
        for name, heading, caption, figure in figures(summary)
        if name != "waterfall"
    ]
    by_name = {name: _figure(summary, name, *rest) for name, *rest in drawn}
    body = [
        _head(summary),
        _hero(summary),
        _lead(by_name.pop("saturation", ""), _advice(summary)),
        *by_name.values(),
        _phases(summary),
        _nodes(summary),
        _gpus(summary),
        _quality(summary),
        _source(summary),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a mean of nothing is NaN, and becomes null
        blocks = {"data": shell.data(content(summary, [name for name, *_ in drawn]))}
    scripts = (shell.PLOTS, shell.STACK, shell.HEAT, shell.START)
    return shell.document(f"{summary.title} - Piolet score", body, blocks, scripts)


def _head(summary: Summary) -> str:
    models = sorted({gpu.model for gpu in summary.view.gpus if gpu.model})
    names = [node.name for node in summary.nodes]
    listed = ", ".join(names) if len(names) <= _NAMES_MOST else f"{names[0]} to {names[-1]}"
    began = time.strftime("%a %d %b %Y, %H:%M UTC", time.gmtime(summary.began))
    size = f"{gpus(summary.size)} on " if summary.score.gpus else ""
    facts = [
        f"step {summary.name}" if summary.job != "local" else "local command",
        summary.user,
        summary.label if summary.label != summary.title else "",
        f"{size}{nodes(summary)} ({listed})",
        ", ".join(models),
        began,
        duration(summary.seconds),
        f"environment {summary.environment}" if summary.environment else "",
    ]
    title = summary.job_name or summary.label or facts[0]
    line = " · ".join(escaped(fact) for fact in facts if fact and fact != title)
    command = f"<code class=command>{escaped(summary.command)}</code>" if summary.command else ""
    page = (
        f"<header><div><h1>{escaped(title)}</h1><p class=soft>{line}</p></div>"
        f"<button id=theme type=button>light / dark</button></header>{command}"
    )
    if summary.simulated:
        text = f"Simulated figures ({summary.simulated}): they say nothing about real GPUs."
        page += f"<div class=warn>{escaped(text)}</div>"
    return page


def _hero(summary: Summary) -> str:
    score = summary.score
    if not score.gpus:
        return "<div class=hero><div class=score><b>no GPU</b><span>the host's figures only</span></div></div>"
    said = share(summary.saturation)
    long = " long" if len(said) > 6 else ""
    page = f'<div class=hero><div class="score{long}"><b>{escaped(said)}</b><span>GPU saturation</span></div><div>'
    if score.value is not None:
        parts = series.shares(summary)
        page += shell.bar(parts) + shell.key(
            (name, colour, f"{name} {bound(score, name)}{percent(part)}") for name, colour, part in parts
        )
    page += "</div></div>"
    cards = [
        (share(summary.utilisation), "utilisation, as nvidia-smi shows it"),
        (energy_of(summary.energy), "energy of the GPUs"),
    ]
    if score.value is not None:
        cards.append((percent(score.above), "of the time above 60 % saturation"))
    if score.gpus > 1 and score.value is not None:
        cards.append((percent(summary.balance), "balance of the GPUs (mean / max)"))
    page += shell.cards(cards)
    reason = summary.saturation.reason
    return page + (f"<div class=warn>{escaped(f'Saturation {said}: {reason}.')}</div>" if reason else "")


def _figure(summary: Summary, name: str, heading: str, caption: str, picture: str) -> str:
    key = ""
    if name == "saturation":
        weights = summary.view.weights.text
        more = [("aggregated", series.RED, f"dashes: aggregated by {weights}")] if weights else []
        key = shell.key([*((part, colour, part) for part, colour, _ in series.stack(summary)), *more])
    if name == "heat":
        key = shell.key(("", colour, f"{percentage} %") for percentage, colour in series.HEAT_KEY)
    if name == "host":
        caption = f"Figures of {series.host_of(summary)}. {caption}"
    tools = {"saturation": shell.tools(), "heat": shell.heat_tools(not series.is_gpus(summary.view))}.get(name, "")
    drawn = shell.plots(name, " two" if name in _TWO else "")
    return shell.section(heading, f"{key}{tools}<figure>{picture}{drawn}</figure>", note=caption)


def _lead(timeline: str, advice: str) -> str:
    if not timeline or not advice:
        return timeline + advice
    return f"<div class=lead>{timeline}{advice}</div>"


def _advice(summary: Summary) -> str:
    if not summary.advice:
        return ""
    items = "".join(f"<div class=advice><b>{escaped(a.seen)}</b><p>{escaped(a.do)}</p></div>" for a in summary.advice)
    return f"<section><h2>Advice</h2>{items}</section>"


def _share(value: float | None) -> tuple[str, object]:
    return ("-", -1) if value is None or value != value else (f"{100 * value:.1f} %", round(value, 6))


def _phases(summary: Summary) -> str:
    if len(summary.phases) < 2:
        return ""
    head = ("phase", "from", "to", "saturation", "compute", "memory", "communication", "engine active")
    rows = (
        [
            (phase.what, phase.what),
            (duration(phase.start), phase.start),
            (duration(phase.end), phase.end),
            *(_share(value) for value in (phase.s, phase.c, phase.m, phase.n, phase.engine)),
        ]
        for phase in summary.phases
    )
    table = shell.table(head, rows)
    return (
        f"<section><h2>Phases</h2><details><summary>{len(summary.phases)} phases</summary>{table}</details></section>"
    )


def _nodes(summary: Summary) -> str:
    if len(summary.nodes) < 2 or not summary.score.gpus:
        return ""
    head = ("node", "GPUs", "saturation", "lowest GPU", "highest GPU", "coverage", "energy")
    rows = (
        [
            (node.name, node.name),
            (str(node.gpus), node.gpus),
            *(_share(value) for value in (node.s, node.least, node.most, node.coverage)),
            (energy(node.energy), node.energy or -1),
        ]
        for node in sorted(summary.nodes, key=lambda node: 2.0 if node.s is None else node.s)
    )
    note = "<p class=soft>Lowest first; a click on a heading sorts.</p>"
    return f"<section><h2>Nodes</h2>{note}{shell.table(head, rows, True)}</section>"


def _gpus(summary: Summary) -> str:
    view = summary.view
    if not view.gpus:
        return ""
    per_gpu = view.per_gpu()
    order = sorted(range(len(view.gpus)), key=lambda i: 2.0 if per_gpu[i] != per_gpu[i] else float(per_gpu[i]))
    means = ("utilisation", "sm", "occupancy", "tensor", "fp32", "dram")
    head = ("GPU", "saturation", *means, "power", "clock", "hottest", "energy")
    rows = []
    for i in order[:_ROWS_MAX]:
        gpu = view.gpus[i]
        name = f"{gpu.node}:{gpu.index}"
        plain = (
            (view.means["power"][i], "W"),
            (view.clock[i], "MHz"),
            (view.peak["temperature"][i], "°C"),
        )
        rows.append(
            [
                (name, name),
                _share(float(per_gpu[i])),
                *(_share(float(view.means[mean][i])) for mean in means),
                *((f"{value:.0f} {unit}", value) if value == value else ("-", -1) for value, unit in plain),
                (energy(float(view.energy[i])), view.energy[i]) if view.energy[i] == view.energy[i] else ("-", -1),
            ]
        )
    note = f" The lowest {_ROWS_MAX} of {len(order)}." if len(order) > _ROWS_MAX else ""
    return f"<section><h2>GPUs</h2><p class=soft>Lowest first.{note}</p>{shell.table(head, rows, True)}</section>"


def _quality(summary: Summary) -> str:
    lines = list(summary.quality)
    if summary.cost:
        cores, memory = summary.cost
        lines.append(f"sampling took {100 * cores:.2f} % of a core and {memory / 1e6:.0f} MB of memory per node")
    return "<section><h2>Data quality</h2>" + "".join(f"<p>{escaped(line)}</p>" for line in lines) + "</section>"


def _source(summary: Summary) -> str:
    facts = [("command", summary.command), ("collectors", "; ".join(summary.collectors))]
    facts += [(f"not {name}", why) for name, why in summary.not_used.items()]
    facts += [("peaks", text) for text in sorted({gpu.peaks.source for gpu in summary.view.gpus})]
    facts += [("GPU", model) for model in sorted({gpu.model for gpu in summary.view.gpus})]
    rows = "".join(f"<dt>{escaped(name)}</dt><dd>{escaped(text)}</dd>" for name, text in facts if text)
    return f"<section><h2>Where the figures come from</h2><dl>{rows}</dl></section>"
