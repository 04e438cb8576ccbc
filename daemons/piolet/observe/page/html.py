"""One page of a job: a single HTML file of a step's data, with the renderer of the score report.

Names, texts of events, marks and whatever else stands in the data are hostile: they become text by `shell.escaped`, or
JSON that the script writes as text. The first data are lines and one heat map; other maps follow farther below.
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]

from piolet.base import texts
from piolet.observe.job import Job
from piolet.observe.page import grid as grids
from piolet.observe.page import headline, heat, panels, saturation, sections, still, track
from piolet.observe.page.grid import Grid
from piolet.observe.page.heat import Choice
from piolet.observe.page.saturation import Saturation
from piolet.observe.reading import StepData
from piolet.score.advice import percent
from piolet.score.report import content, series, shell
from piolet.score.report.screen import bound, duration
from piolet.score.report.shell import escaped

_OWN = "piolet.observe.page"
_SCRIPTS = (shell.PLOTS, shell.STACK, shell.HEAT, (_OWN, "track.js"), shell.START)
_HEIGHT, _LEFT, _STACK_HEIGHT = 84, 58, 170
_NODES_MOST = 4
_GOOD = ("COMPLETED", "RUNNING")
_UNIT = re.compile(r"(\d) ")  # a number and its unit stay on one line


def render(step: StepData, job: Job | None = None, findings: pa.Table | None = None, where: str = "") -> bytes:
    """Return the page of a step.

    job         what else is known of its job
    findings    rows of the layout's table; None: those that the step has
    where       where its data are, if they do not stay in the step's directory

    Raises ObserveError: data are damaged.
    """
    names = tuple(dict.fromkeys((*panels.GPU_NAMES, *saturation.NAMES)))
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # a mean of nothing is NaN, and is not drawn
        grid = grids.of(step, names, panels.HOST_NAMES, findings)
        found = saturation.of(grid)
        maps = heat.of(grid, found)
        axis = track.track(grid)
        lines = [
            content.panel(each, coarse=True) | {"height": _HEIGHT, "bare": 1}
            for make in (panels.gpus, panels.hosts, panels.mounts, panels.ports, panels.marks)
            for each in make(grid)
        ]
        if lines:
            lines[-1] |= {"height": _HEIGHT + 16, "bare": 0}  # the last one has the axis
        plots: dict[str, Any] = {"track": axis, "lines": {"panels": lines}}
        if found is not None:
            plots["saturation"] = _stack(grid, found)
        if maps:
            plots["heat"] = maps[0].plain
    body = [
        _head(grid),
        "<main>",
        _hero(grid, found, job),
        sections.why(job.why if job else ()),
        sections.findings(grid),
        _lines(axis, found, lines),
        _heat(grid, maps),
        _waterfall(found),
        sections.changes(job.changes if job else None),
        "<div class=columns>",
        sections.vettings(step.meta.get("vetting"), job.vettings if job else ()),
        sections.environments(step.meta.get("environment"), job.environments if job else ()),
        "</div>",
        sections.events(grid),
        sections.quality(grid, job.missing if job else ()),
        _source(grid, where),
        "</main>",
    ]
    about = {
        "seconds": grid.seconds,
        "origin": 0,
        "width": grid.width,
        "bins": grid.bins,
        "began": grid.start / 1e9,
        "phases": [],
        "left": _LEFT,
        "plots": plots,
    }
    blocks = {"data": shell.data(about)}
    blocks |= {f"map{number}": shell.data(choice.plain) for number, choice in enumerate(maps) if number}
    title = f"{step.meta.get('name') or 'job'} (step {step.name})"
    page = shell.document(title, [part for part in body if part], blocks, _SCRIPTS, shell.read(_OWN, "job.css"))
    return page.encode()


def _head(grid: Grid) -> str:
    meta, nodes = grid.step.meta, grid.step.nodes
    listed = ", ".join(nodes) if len(nodes) <= _NODES_MOST else f"{nodes[0]} to {nodes[-1]}"
    models = {str(gpu["name"]) for gpu in _devices(meta.get("devices")) if gpu.get("name")}
    size = f"{texts.counted(len(grid.gpus), 'GPU')} on " if grid.gpus else ""
    facts = [
        f"step {grid.step.name}",
        meta.get("user"),
        f"account {meta['account']}" if meta.get("account") else "",
        f"partition {meta['partition']}" if meta.get("partition") else "",
        f"{size}{texts.counted(len(nodes), 'node')}" + (f" ({listed})" if nodes else ""),
        ", ".join(sorted(models)),
        time.strftime("%a %d %b %Y, %H:%M UTC", time.gmtime(grid.start / 1e9)),
        duration(grid.seconds) + ("" if meta.get("end") else " so far"),
    ]
    line = "".join(f"<span>{escaped(fact)}</span>" for fact in facts if fact)
    command = f"<code class=command>{escaped(meta['command'])}</code>" if meta.get("command") else ""
    title = meta.get("name") or f"step {grid.step.name}"
    page = (
        f'<header><div><h1>{escaped(title)}</h1><p class="soft facts">{line}</p></div>'
        f"<button id=theme type=button>light / dark</button></header>{command}"
    )
    if meta.get("simulated"):
        text = f"Simulated figures ({meta['simulated']}): they say nothing about real GPUs."
        page += f"<div class=warn>{escaped(text)}</div>"
    return page


def _devices(devices: Any) -> Iterator[dict[str, Any]]:
    for own in devices.values() if isinstance(devices, dict) else ():
        yield from (gpu for gpu in own if isinstance(gpu, dict)) if isinstance(own, list) else ()


def _end(grid: Grid, job: Job | None) -> tuple[str, Any]:
    """Return Slurm's word for how the step is, and its exit status if it is known: as the data say it, or the job."""
    meta = grid.step.meta
    if meta.get("state"):
        return str(meta["state"]), meta.get("exit")
    for step in job.now.steps if job else ():
        if step.name == meta["step"]:
            return step.state, f"by signal {step.signal}" if step.signal else step.status
    return ("ended" if meta.get("end") else "RUNNING"), meta.get("exit")


def _hero(grid: Grid, found: Saturation | None, job: Job | None) -> str:
    state, code = _end(grid, job)
    bad = "" if state in (*_GOOD, "ended") else " state-bad"
    shown = state.replace("_", " ").lower()
    ended = f"exit {', '.join(map(str, code)) if isinstance(code, list) else code}" if code not in (None, "") else ""
    count = len(grid.findings)
    cards = [(_UNIT.sub("\\1\u00a0", value), text, quality) for value, text, quality in headline.cards(grid, found)]
    cards.append((str(count) if count else "no", "finding" if count == 1 else "findings", ""))
    long = " long" if len(shown) > 9 else ""
    page = (
        f'<div class=hero><div class="score{long}{bad}"><b>{escaped(shown)}</b><span>{escaped(ended)}</span></div>'
        f"{shell.cards(cards)}</div>"
    )
    covered = headline.coverage(grid)
    if covered is None:
        page += "<div class=warn>No samples of this step are kept; Data quality says why, as far as it is known.</div>"
    elif covered < headline.WHOLE:
        text = f"Samples cover {percent(covered)} of the step; figures are of that time."
        page += f"<p class=soft>{text} <a href=#quality>Why</a></p>"
    return page


def _lines(axis: dict[str, Any], found: Saturation | None, lines: list[dict[str, Any]]) -> str:
    if not lines and found is None and not axis["lanes"]:
        return ""
    note = "One axis for all: the pointer, zoom and keys. Line: the mean. Light: from the lowest to the highest."
    lanes = f"<div class=sticky>{shell.plots('track')}</div>" if axis["lanes"] else ""
    stack = ""
    if found is not None:
        key = shell.key((part, colour, part) for part, colour, _ in found.parts)
        stack = f"{shell.plots('saturation')}{key}"
    pictures = f"<figure class=static>{still.lines(lines)}</figure>"
    return shell.section(
        "Over time", shell.tools(), lanes, stack, shell.plots("lines"), pictures, note=note, name="lines"
    )


def _heat(grid: Grid, maps: list[Choice]) -> str:
    if not maps:
        return ""
    buttons = "".join(
        f"<button type=button data-choice={f'map{number}' if number else chr(34) * 2} "
        f"aria-pressed={'false' if number else 'true'}>{escaped(each.label)}</button>"
        for number, each in enumerate(maps)
    )
    is_gpus = 0 < len(grid.gpus) <= heat.GPUS_MOST
    kind = "GPU" if is_gpus else "node"
    note = "Dark is little, bright is much; no colour: no data. Drag to zoom into rows and time."
    bar = shell.heat_tools(not is_gpus, buttons)
    picture = f"<figure class=static>{still.heat(maps[0].plain)}</figure>"
    return shell.section(f"By {kind} and time", bar, shell.plots("heat"), picture, note=note, name="heat")


def _stack(grid: Grid, found: Saturation) -> dict[str, Any]:
    utilisation = grid.gpus_of.known("utilisation")
    mean = np.full(grid.bins, np.nan) if utilisation is None else np.nanmean(utilisation.mean, axis=0)
    return content.stack(found.parts, 100 * found.mean(), 100 * mean) | {"height": _STACK_HEIGHT}


def _waterfall(found: Saturation | None) -> str:
    if found is None:
        return ""
    parts = series.shares_of(found.parts, found.score)
    key = shell.key((name, colour, f"{name} {bound(found.score, name)}{percent(part)}") for name, colour, part in parts)
    note = (
        "Idle: no kernel ran. Narrow: on few SMs. Stalled: the SMs had work and waited. The rest is what was used, by "
        "what limited the GPU."
    )
    if found.is_least:
        note += " Of means over several samples, so what was used is at least this."
    return shell.section("Where the GPUs' time went", shell.bar(parts), key, note=note, name="waterfall")


def _source(grid: Grid, where: str) -> str:
    meta = grid.step.meta
    facts = [
        ("cluster", meta.get("cluster")),
        ("job", meta.get("job")),
        ("array task", f"{meta['array_job']}_{meta.get('array_task', '')}" if meta.get("array_job") else ""),
        ("component", f"{meta['het_job']}+{meta.get('het_component', '')}" if meta.get("het_job") else ""),
        ("restarts", meta.get("restarts") or ""),
        ("samples", f"every {meta['interval']:g} s" if isinstance(meta.get("interval"), int | float) else ""),
        ("files", where or grid.step.directory),
        ("data of --score", meta.get("score")),
    ]
    return shell.section("Where this comes from", shell.definitions(facts))
