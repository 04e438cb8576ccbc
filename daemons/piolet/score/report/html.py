"""The report as one HTML file: works offline and for years, asks nobody for anything, prints well.

Who has no script has the figures as pictures; the script, which is page.js and no other by its digest, shows the values
under the pointer, zooms, sorts tables and switches between light and dark. Everything that came from a user or a node
is escaped, and the page forbids itself to load anything.
"""

from __future__ import annotations

import base64
import hashlib
import html
import time
import warnings
from collections.abc import Iterable
from importlib import resources

from piolet.score.advice import percent
from piolet.score.report import series
from piolet.score.report.content import content
from piolet.score.report.figures import figures, svg
from piolet.score.report.screen import bound, duration, energy, energy_of, gpus, nodes, share
from piolet.score.summary import Summary

_ROWS_MAX, _NAMES_MOST = 2048, 4
_TWO = ("activity", "power", "host")  # figures with two columns of panels


def render(summary: Summary) -> str:
    """Return the page."""
    style, script = _own("page.css"), _own("page.js")
    policy = f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; img-src data:"
    drawn = [
        (name, heading, caption, svg(figure, name))
        for name, heading, caption, figure in figures(summary)
        if name != "waterfall"
    ]
    by_name = {name: _figure(summary, name, *rest) for name, *rest in drawn}
    parts = [
        "<!doctype html><html lang=en><head><meta charset=utf-8>",
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name=viewport content="width=device-width, initial-scale=1">',
        f"<title>{_e(summary.title)} - Piolet score</title><style>{style}</style></head><body>",
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
        parts.append(f"<script type=application/json id=data>{content(summary, [name for name, *_ in drawn])}</script>")
    parts.append(f"<div id=tip></div><script>{script}</script></body></html>\n")
    return "\n".join(part for part in parts if part)


def _own(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text("utf-8")


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _e(text: object) -> str:
    return html.escape(str(text))


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
    line = " · ".join(_e(fact) for fact in facts if fact and fact != title)
    command = f"<code class=command>{_e(summary.command)}</code>" if summary.command else ""
    page = (
        f"<header><div><h1>{_e(title)}</h1><p class=soft>{line}</p></div>"
        f"<button id=theme type=button>light / dark</button></header>{command}"
    )
    if summary.simulated:
        text = f"Simulated figures ({summary.simulated}): they say nothing about real GPUs."
        page += f"<div class=warn>{_e(text)}</div>"
    return page


def _hero(summary: Summary) -> str:
    score = summary.score
    if not score.gpus:
        return "<div class=hero><div class=score><b>no GPU</b><span>the host's figures only</span></div></div>"
    said = share(summary.saturation)
    long = " long" if len(said) > 6 else ""
    page = f'<div class=hero><div class="score{long}"><b>{_e(said)}</b><span>GPU saturation</span></div><div>'
    if score.value is not None:
        parts = series.shares(summary)
        page += _bar(parts) + _key(
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
    page += (
        "<div class=cards>" + "".join(f"<div><b>{_e(v)}</b> <span>{_e(t)}</span></div>" for v, t in cards) + "</div>"
    )
    reason = summary.saturation.reason
    return page + (f"<div class=warn>{_e(f'Saturation {said}: {reason}.')}</div>" if reason else "")


def _bar(parts: list[tuple[str, str, float]]) -> str:
    done, rects = 0.0, ""
    for _, colour, part in parts:
        fill = _fill(colour)
        rects += f'<rect x="{100 * done:.2f}%" width="{100 * part:.2f}%" height="100%" fill="{fill}"/>'
        done += part
    return f'<svg class=bar role=img aria-label="where the time went">{rects}</svg>'


def _fill(colour: str) -> str:
    """Return a colour as the page has it, light and dark."""
    return {dict(series.LOST)["idle"]: "var(--idle)", series.NO_DATA: "var(--paper)"}.get(colour, colour)


def _key(entries: Iterable[tuple[str, str, str]]) -> str:
    spans = (
        f'<span><svg viewBox="0 0 1 1"><rect width="1" height="1" fill="{_fill(colour)}"/></svg>{_e(text)}</span>'
        for _, colour, text in entries
    )
    return f"<p class=key>{''.join(spans)}</p>"


def _figure(summary: Summary, name: str, heading: str, caption: str, picture: str) -> str:
    key = _key((part, colour, part) for part, colour, _ in series.stack(summary)) if name == "saturation" else ""
    if name == "heat":
        key = _key(("", colour, f"{percentage} %") for percentage, colour in series.HEAT_KEY)
    if name == "host":
        caption = f"Figures of {series.host_of(summary)}. {caption}"
    tools = "<button type=button class=reset>whole time</button>"
    if name == "heat" and not series.is_gpus(summary.view):
        tools = (
            "<button type=button data-heat=worst aria-pressed=true>worst</button>"
            f"<button type=button data-heat=mean aria-pressed=false>mean</button>{tools}"
        )
    two = " two" if name in _TWO else ""
    hint = "<span class=soft>drag to zoom, double click for all</span>" if name in ("saturation", "heat") else ""
    bar = f"<div class=tools>{tools}{hint}</div>" if hint else ""
    return (
        f"<section><h2>{_e(heading)}</h2><p class=soft>{_e(caption)}</p>{key}{bar}"
        f'<figure>{picture}<div class="plots{two}" data-plot={name}></div></figure></section>'
    )


def _lead(timeline: str, advice: str) -> str:
    if not timeline or not advice:
        return timeline + advice
    return f"<div class=lead>{timeline}{advice}</div>"


def _advice(summary: Summary) -> str:
    if not summary.advice:
        return ""
    items = "".join(f"<div class=advice><b>{_e(a.seen)}</b><p>{_e(a.do)}</p></div>" for a in summary.advice)
    return f"<section><h2>Advice</h2>{items}</section>"


def _table(head: Iterable[str], rows: Iterable[Iterable[tuple[str, object]]], sort: bool = False) -> str:
    """Return a table; a cell is its text and the value that it is sorted by."""
    lines = ("".join(f'<td data-value="{_e(value)}">{_e(text)}</td>' for text, value in row) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    heads = "".join(f"<th>{_e(name)}</th>" for name in head)
    kind = " class=sort" if sort else ""
    return f"<div class=scroll><table{kind}><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"


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
    table = _table(head, rows)
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
    return f"<section><h2>Nodes</h2>{note}{_table(head, rows, True)}</section>"


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
    return f"<section><h2>GPUs</h2><p class=soft>Lowest first.{note}</p>{_table(head, rows, True)}</section>"


def _quality(summary: Summary) -> str:
    lines = list(summary.quality)
    if summary.cost:
        cores, memory = summary.cost
        lines.append(f"sampling took {100 * cores:.2f} % of a core and {memory / 1e6:.0f} MB of memory per node")
    return "<section><h2>Data quality</h2>" + "".join(f"<p>{_e(line)}</p>" for line in lines) + "</section>"


def _source(summary: Summary) -> str:
    facts = [("command", summary.command), ("collectors", "; ".join(summary.collectors))]
    facts += [(f"not {name}", why) for name, why in summary.not_used.items()]
    facts += [("peaks", text) for text in sorted({gpu.peaks.source for gpu in summary.view.gpus})]
    facts += [("GPU", model) for model in sorted({gpu.model for gpu in summary.view.gpus})]
    rows = "".join(f"<dt>{_e(name)}</dt><dd>{_e(text)}</dd>" for name, text in facts if text)
    return f"<section><h2>Where the figures come from</h2><dl>{rows}</dl></section>"
