"""The screen of `piolet top`: nodes by GPUs, and what happened. Pure: a text of so many columns and lines."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from piolet.observe.job import Happened
from piolet.observe.jobtext import moment
from piolet.observe.live import GpuNow, NodeNow
from piolet.observe.why import span

_EVENTS = 5
_WIDE = 90  # from so many columns on there is room for more than the saturation
# Okabe and Ito's colours, as the report's; from little to much.
_COLOURS = ((0.2, "#888888"), (0.4, "#56B4E9"), (0.6, "#E69F00"), (1.01, "#009E73"))
_BLOCKS = " ▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Shown:
    """What is shown: the job in a line, its nodes, what happened, and what is missing."""

    title: str
    state: str
    ran: float | None
    limit: float | None
    nodes: Sequence[NodeNow]
    events: Sequence[Happened]
    missing: Sequence[str]


def render(shown: Shown, width: int, height: int, color: bool) -> str:
    """Return the screen, with escape sequences only if `color`; nodes that there is no room for are counted."""
    file = io.StringIO()
    system: Literal["truecolor"] | None = "truecolor" if color else None
    console = Console(file=file, width=width, force_terminal=color, color_system=system, markup=False, emoji=False)
    console.print(_head(shown), overflow="ellipsis", no_wrap=True)
    events = list(shown.events)[-_EVENTS:]
    room = max(3, height - 6 - len(events) - len(shown.missing))
    if shown.nodes:
        simulated = next((node.simulated for node in shown.nodes if node.simulated), "")
        if simulated:
            console.print(Text(f"SIMULATED FIGURES ({simulated})", "bold"), overflow="ellipsis", no_wrap=True)
        console.print(_table(_worst(shown.nodes, room), width))
        if len(shown.nodes) > room:
            console.print(f"and {len(shown.nodes) - room} nodes more: these have the least saturation")
    for one in events:
        text = f"{moment(one.time)[11:]} {one.node} {one.kind}: {one.text}"
        console.print(Text(text, "bold" if one.severity == "fatal" else ""), overflow="ellipsis", no_wrap=True)
    for text in shown.missing:
        console.print(Text(text, "dim"))
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def _head(shown: Shown) -> Text:
    ran = f"  {span(shown.ran)}" if shown.ran is not None else ""
    limit = f" of {span(shown.limit)}" if shown.limit and ran else ""
    busy = [gpu.saturation for node in shown.nodes for gpu in node.gpus if not math.isnan(gpu.saturation)]
    many = f"  {100 * sum(busy) / len(busy):.0f} % of {len(busy)} GPUs" if busy else ""
    return Text(f"{shown.title}  {shown.state}{ran}{limit}{many}", "bold")


def _worst(nodes: Sequence[NodeNow], room: int) -> list[NodeNow]:
    """Return the nodes that are shown, in their order: all, or those with the least saturation."""
    if len(nodes) <= room:
        return list(nodes)

    def least(node: NodeNow) -> tuple[bool, float]:
        known = [gpu.saturation for gpu in node.gpus if not math.isnan(gpu.saturation)]
        return node.ended, min(known, default=2.0)

    chosen = {node.name for node in sorted(nodes, key=least)[:room]}
    return [node for node in nodes if node.name in chosen]


def _table(nodes: Sequence[NodeNow], width: int) -> Table:
    wide = width >= _WIDE
    table = Table(box=None, padding=(0, 1), header_style="dim", show_edge=False)
    table.add_column("node", no_wrap=True, overflow="ellipsis", max_width=24 if wide else 12)
    table.add_column("GPUs, saturation in %", no_wrap=True, overflow="ellipsis")
    if wide:
        table.add_column("limit", no_wrap=True)
        table.add_column("W", justify="right")
        table.add_column("°C", justify="right")
    table.add_column("cores", justify="right", no_wrap=True)
    table.add_column("GB", justify="right", no_wrap=True)
    if wide:
        table.add_column("net MB/s", justify="right")
    table.add_column("", no_wrap=True)
    for node in nodes:
        cells: list[Text | str] = [Text(node.name), _gpus(node.gpus)]
        if wide:
            cells += [_limit(node.gpus), _sum(node.gpus, "power"), _most(node.gpus, "temperature")]
        cells += [_number(node.host.get("cpu"), 1.0, ".1f"), _number(node.host.get("memory"), 1e-9, ".1f")]
        if wide:
            moved = [node.host[name] for name in ("net_rx", "net_tx") if name in node.host]
            cells.append(_number(sum(moved) if moved else None, 1e-6, ".0f"))
        cells.append(_age(node))
        table.add_row(*cells)
    return table


def _gpus(gpus: Sequence[GpuNow]) -> Text:
    text = Text()
    for gpu in gpus:
        if math.isnan(gpu.saturation):
            used = gpu.utilisation
            text.append("   ? " if math.isnan(used) else f"u{100 * used:3.0f} ", "dim")
            continue
        colour = next(colour for most, colour in _COLOURS if gpu.saturation < most)
        block = _BLOCKS[round(min(1.0, gpu.saturation) * (len(_BLOCKS) - 1))]
        text.append(f"{block}{100 * gpu.saturation:3.0f} ", colour)
    return text if gpus else Text("none", "dim")


def _limit(gpus: Sequence[GpuNow]) -> str:
    named = [gpu.limit for gpu in gpus if gpu.limit]
    return max(set(named), key=lambda what: (named.count(what), what)) if named else "-"


def _sum(gpus: Sequence[GpuNow], name: str) -> str:
    known = [value for gpu in gpus if not math.isnan(value := getattr(gpu, name))]
    return f"{sum(known):.0f}" if known else "-"


def _most(gpus: Sequence[GpuNow], name: str) -> str:
    known = [value for gpu in gpus if not math.isnan(value := getattr(gpu, name))]
    return f"{max(known):.0f}" if known else "-"


def _number(value: float | None, factor: float, form: str) -> str:
    return "-" if value is None else format(value * factor, form)


def _age(node: NodeNow) -> str:
    if node.ended:
        return "ended"
    return f"silent {span(node.age)}" if node.age > node.stale else ""
