"""A certificate as one HTML page, made of its JSON alone: no script, works offline, prints on a page or two."""

from __future__ import annotations

import html
import time
from collections.abc import Mapping
from typing import Any

from piolet.score.advice import percent
from piolet.score.figure import restored
from piolet.score.report.screen import PARTS, duration, said, share

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_STYLE = """
body { margin: 0 auto; max-width: 50rem; padding: 1.5rem; font: 14px/1.45 system-ui, sans-serif; color: #202124; }
h1 { font-size: 1.3rem; margin: 0 0 .2rem; } h2 { font-size: 1rem; margin: 1.4rem 0 .3rem; } p { margin: .3rem 0; }
.soft { color: #5f6368; } .big { font-size: 1.6rem; font-weight: 650; }
table { border-collapse: collapse; width: 100%; } td, th { text-align: left; padding: .2rem .6rem .2rem 0;
  vertical-align: top; border-bottom: 1px solid #d8d9da; } th { font-weight: 500; color: #5f6368; width: 11rem; }
.bar { display: flex; height: .9rem; margin: .3rem 0; } code { overflow-wrap: anywhere; font-size: .85em; }
.warn { border-left: 4px solid #b3261e; padding: .3rem .8rem; background: #f6f7f8; }
@media print { h2 { break-after: avoid; } }
"""


def render(content: Mapping[str, Any], name: str) -> str:
    """Return the page; `name` is what the JSON that it is of is called."""
    total, made = content["total"], content["made"]
    parts = [
        "<!doctype html><html lang=en><head><meta charset=utf-8>",
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name=viewport content="width=device-width, initial-scale=1">',
        f"<title>GPU use: certificate</title><style>{_STYLE}</style></head><body>",
        "<h1>Certificate of GPU use</h1>",
        f"<p class=soft>made {_e(made['at'])} by {_e(made['by'])} on {_e(made['host'])}, ",
        f"Piolet {_e(made['release'])}</p>",
        f"<p><span class=big>{_e(_share(total['saturation']))}</span> GPU saturation over "
        f"<span class=big>{_e(_hours(total['gpu_hours']))}</span> GPU hours in {total['steps']} "
        f"{'step' if total['steps'] == 1 else 'steps'}</p>",
        f"<div class=warn>{''.join(f'<p>{_e(line)}</p>' for line in content['worth'])}"
        f"<p>This page proves nothing by itself. What is signed is {_e(name)}: ",
        f"<code>piolet score verify {_e(name)}</code></p></div>",
        *(_step(step) for step in content["steps"]),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _step(step: Mapping[str, Any]) -> str:
    figures = step["figures"]
    began = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(step["start"]))
    label = f", {step['label']}" if step["label"] else ""
    rows = [
        ("began, ran for", f"{began}, {duration(step['seconds'])}"),
        ("GPUs", f"{_number(figures['size'])} on {step['nodes']} nodes: {', '.join(step['models']) or '-'}"),
        ("GPU hours", _hours(step["gpu_hours"])),
        ("saturation", _with_reason(figures["saturation"])),
        ("at the highest clock", _with_reason(figures["rated"])),
        ("utilisation", _with_reason(figures["utilisation"])),
        ("coverage", _with_reason(figures["coverage"])),
        ("OFU", _share(figures["ofu"])),
        ("user in the files", ", ".join(f"uid {uid}" for uid in step["uids"])),
        ("Slurm's accounting", _accounting(step["accounting"])),
        ("source", "; ".join(step["sources"])),
        ("data quality", "; ".join(step["quality"])),
    ]
    table = "".join(f"<tr><th>{_e(head)}</th><td>{_e(text)}</td></tr>" for head, text in rows if text)
    digest = f"<tr><th>files</th><td>{len(step['files'])}, digest <code>{_e(step['digest'])}</code></td></tr>"
    mark = f"<p class=warn>Simulated figures: {_e(step['simulated'])}.</p>" if step["simulated"] else ""
    return f"<h2>Step {_e(step['name'])}{_e(label)}</h2>{mark}{_bar(step['parts'])}<table>{table}{digest}</table>"


def _bar(parts: Mapping[str, float] | None) -> str:
    if parts is None:
        return ""
    shown = [(name, parts[name], colour) for name, _, colour, _ in PARTS if parts.get(name, 0) >= 0.0005]
    bars = "".join(f'<div style="width:{100 * part:.2f}%;background:{colour}"></div>' for _, part, colour in shown)
    legend = ", ".join(f"{name} {percent(part)}" for name, part, _ in shown)
    return f"<div class=bar>{bars}</div><p class=soft>of the GPUs' time: {_e(legend)}</p>"


def _accounting(job: Mapping[str, Any] | None) -> str:
    if job is None:
        return "nothing"
    return (
        f"{job['user']} ({job['account']}), {job['state']}, {job['gpus']} GPUs on {job['nodes']} nodes for "
        f"{duration(float(job['seconds']))}: {job['gpu_hours']:.2f} GPU hours"
    )


def _share(fields: Mapping[str, Any]) -> str:
    return share(restored(fields))


def _with_reason(fields: Mapping[str, Any]) -> str:
    figure = restored(fields)
    return f"{share(figure)}: {figure.reason}" if figure.reason else f"{share(figure)} (confirmed: {figure.witness})"


def _hours(fields: Mapping[str, Any]) -> str:
    return said(restored(fields), lambda hours: f"{hours:.2f}")


def _number(fields: Mapping[str, Any]) -> str:
    return said(restored(fields), lambda number: f"{number:.0f}")


def _e(text: object) -> str:
    return html.escape(str(text))
