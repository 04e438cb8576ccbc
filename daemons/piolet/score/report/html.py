"""The report as one HTML file: works offline and for years, asks nobody for anything, prints well.

No script is needed to read it; a few lines sort the table and switch between light and dark. Everything that came
from a user or a node is escaped, and the page forbids itself to load anything.
"""

from __future__ import annotations

import html
from collections.abc import Iterable

from piolet.score.advice import percent
from piolet.score.report.figures import figures, svg
from piolet.score.report.screen import UNSURE_MOST, duration, energy, energy_of, gpus, nodes, share
from piolet.score.report.screen import parts as parts_of
from piolet.score.summary import Summary

_ROWS_MAX = 2048
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
_STYLE = """
:root { --font: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; --ink: #202124; --paper: #fff;
  --faint: #d8d9da; --soft: #5f6368; --card: #f6f7f8; --warn: #b3261e; --accent: #0072b2; color-scheme: light; }
:root[data-theme=dark] { --ink: #e8eaed; --paper: #16181b; --faint: #3c4043; --soft: #a6abb1; --card: #1f2226;
  --warn: #ff8a80; --accent: #7cc4f0; color-scheme: dark; }
@media (prefers-color-scheme: dark) { :root:not([data-theme=light]) { --ink: #e8eaed; --paper: #16181b;
  --faint: #3c4043; --soft: #a6abb1; --card: #1f2226; --warn: #ff8a80; --accent: #7cc4f0; color-scheme: dark; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1.5rem; font: 15px/1.5 var(--font); color: var(--ink);
  background: var(--paper); }
h1 { font-size: 1.25rem; margin: 0; } h2 { font-size: 1.05rem; margin: 2.2rem 0 .2rem; }
p { margin: .3rem 0; } .soft { color: var(--soft); }
header { display: flex; justify-content: space-between; align-items: start; gap: 1rem; }
button { font: inherit; font-size: .8rem; color: var(--soft); background: none; border: 1px solid var(--faint);
  border-radius: 4px; padding: .2rem .6rem; cursor: pointer; }
.warn { border-left: 4px solid var(--warn); padding: .4rem .8rem; background: var(--card); color: var(--warn);
  font-weight: 600; margin: 1rem 0; }
.top { display: grid; grid-template-columns: repeat(auto-fit, minmax(12.5rem, 1fr)); gap: .8rem; margin: 1.2rem 0; }
.top div { background: var(--card); border-radius: 6px; padding: .7rem .9rem; }
.top b { display: block; white-space: nowrap; font-size: 1.55rem; line-height: 1.25; font-weight: 650; }
.top div:first-child { outline: 2px solid var(--accent); }
.top span { color: var(--soft); font-size: .82rem; }
.advice { background: var(--card); border-radius: 6px; padding: .6rem .9rem; margin: .5rem 0; }
svg { width: 100%; height: auto; display: block; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .22rem .5rem; border-bottom: 1px solid var(--faint); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { color: var(--soft); font-weight: 600; }
.sort th { cursor: pointer; } .scroll { max-height: 26rem; overflow: auto; }
.scroll th { position: sticky; top: 0; background: var(--paper); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: .4rem 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
.swatch { display: inline-block; width: .75em; height: .75em; border-radius: 2px; margin-right: .35em; }
@media print { button { display: none; } .scroll { max-height: none; } h2 { break-after: avoid; } }
"""
_SCRIPT = """
document.getElementById('theme').onclick = () => {
  const root = document.documentElement, dark = matchMedia('(prefers-color-scheme: dark)').matches;
  const now = root.dataset.theme || (dark ? 'dark' : 'light');
  root.dataset.theme = now === 'dark' ? 'light' : 'dark';
};
for (const table of document.querySelectorAll('.sort'))
  table.tHead.rows[0].querySelectorAll('th').forEach((head, column) => head.onclick = () => {
    const value = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const down = table.dataset.by === String(column) && table.dataset.down !== '1';
    const compare = (a, b) => { const x = value(a), y = value(b);
      return isNaN(x) || isNaN(y) ? x.localeCompare(y, undefined, {numeric: true}) : x - y; };
    const rows = [...table.tBodies[0].rows].sort((a, b) => down ? compare(b, a) : compare(a, b));
    table.dataset.by = column; table.dataset.down = down ? '1' : '0';
    table.tBodies[0].append(...rows);
  });
"""


def render(summary: Summary) -> str:
    """Return the page."""
    title = "local command" if summary.job == "local" else f"step {summary.name}"
    parts = [
        "<!doctype html><html lang=en><head><meta charset=utf-8>",
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name=viewport content="width=device-width, initial-scale=1">',
        f"<title>Piolet score: {_e(title)}</title><style>{_STYLE}</style></head><body>",
        f"<header><div><h1>Piolet score: {_e(title)}</h1><p class=soft>{_e(_subtitle(summary))}</p></div>",
        "<button id=theme type=button>light / dark</button></header>",
    ]
    if summary.simulated:
        text = f"Simulated figures ({summary.simulated}): they say nothing about real GPUs."
        parts.append(f"<div class=warn>{_e(text)}</div>")
    parts += [_top(summary), _advice(summary)]
    for name, heading, caption, figure in figures(summary):
        parts.append(f"<section><h2>{_e(heading)}</h2><p class=soft>{_e(caption)}</p>{svg(figure, name)}</section>")
        if name == "waterfall":
            parts.append(_legend(summary))
        if name == "saturation":
            parts.append(_phases(summary))
    parts += [_nodes(summary), _gpus(summary), _quality(summary), _source(summary)]
    parts.append(f"<script>{_SCRIPT}</script></body></html>\n")
    return "\n".join(part for part in parts if part)


def _e(text: object) -> str:
    return html.escape(str(text))


def _subtitle(summary: Summary) -> str:
    count = f"{gpus(summary.size)}, " if summary.score.gpus else ""
    label = f"{summary.label}, " if summary.label else ""
    return f"{label}{count}{nodes(summary)}, {duration(summary.seconds)}"


def _top(summary: Summary) -> str:
    score = summary.score
    cards = []
    if score.gpus:
        limits = (
            (score.by_compute, "of the time limited by compute"),
            (score.by_memory, "by memory"),
            (score.by_network, "by communication"),
            (score.above, "of the time above 60 %"),
        )
        is_known = score.value is not None and score.unsure <= UNSURE_MOST
        cards = [
            (share(summary.saturation), "GPU saturation"),
            (share(summary.utilisation), "utilisation, as nvidia-smi shows it"),
            *((percent(part if is_known else None), text) for part, text in limits),
            (energy_of(summary.energy), "energy of the GPUs"),
        ]
        if score.gpus > 1:
            cards.append((percent(summary.balance), "balance of the GPUs (mean / max)"))
    else:
        cards = [(duration(summary.seconds), "host figures only: the step has no GPU")]
    page = "<div class=top>" + "".join(f"<div><b>{_e(v)}</b><span>{_e(t)}</span></div>" for v, t in cards) + "</div>"
    reason = summary.saturation.reason if score.gpus else ""
    return page + (
        f"<div class=warn>{_e(f'Saturation {share(summary.saturation)}: {reason}.')}</div>" if reason else ""
    )


def _advice(summary: Summary) -> str:
    if not summary.advice:
        return ""
    items = "".join(f"<div class=advice><b>{_e(a.seen)}</b><p>{_e(a.do)}</p></div>" for a in summary.advice)
    return f"<section><h2>Advice</h2>{items}</section>"


def _legend(summary: Summary) -> str:
    meaning = {
        "useful": "the saturation, less what a lower clock took",
        "stalled": "SMs had work and waited",
        "narrow": "something ran, on few SMs",
        "idle": "nothing ran",
        "throttled": "busy, at a clock below the highest",
        "unknown": "not told",
    }
    spans = (
        f'<span><i class=swatch style="background:{colour}"></i>{name}: {meaning[name]}</span> &nbsp; '
        for name, _, colour, _ in parts_of(summary.score)
    )
    return f"<p class=soft>{''.join(spans)}</p>"


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
    return _table(head, rows)


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
