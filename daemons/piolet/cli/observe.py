"""`piolet observe`: figures of every step, which nodes record whether a step asks for them or not.

`sources` is here; the other actions have modules of their own, observe_*.py, each with `add_parser` and `run`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from piolet.base import texts
from piolet.site import config

ACTIONS: dict[str, str] = {
    "list": "piolet.cli.observe_list",
    "fetch": "piolet.cli.observe_fetch",
    "export": "piolet.cli.observe_export",
    "page": "piolet.cli.observe_page",
    "findings": "piolet.cli.observe_findings",
    "replay": "piolet.cli.observe_replay",
    "read": "piolet.cli.observe_read",
}
"""Modules of actions, by name."""
_ANSWER_S = 10.0


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `observe` and its actions."""
    parser = subparsers.add_parser(
        "observe", help="figures of every step: what nodes record, and rules over what was recorded",
        description="Figures that nodes record of every step, whether it asks for them or not.", allow_abbrev=False,
    )  # fmt: skip
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    text = "say what figures this node has, and why the rest is missing"
    sources = actions.add_parser("sources", help=text, description=text.capitalize() + ".", allow_abbrev=False)
    sources.add_argument("--json", action="store_true", help="print one object of JSON")
    for place in ACTIONS.values():
        importlib.import_module(place).add_parser(actions)


def run(args: argparse.Namespace, settings: config.Config) -> int:
    """Do what `args` say and return the exit status."""
    if args.action in ACTIONS:
        status: int = importlib.import_module(ACTIONS[args.action]).run(args, settings)
        return status
    return _sources(args, settings)


@dataclass(frozen=True)
class _Told:
    """A source: `why` it tells nothing, '' where it does, and what it never tells, by column."""

    name: str
    text: str
    scope: str
    why: str
    never: dict[str, str]


def _sources(args: argparse.Namespace, settings: config.Config) -> int:
    told = look(settings.observe.without)
    if args.json:
        found = [
            {"name": o.name, "text": o.text, "scope": o.scope, "tells": not o.why, "why": o.why, "never": o.never}
            for o in told
        ]
        print(json.dumps({"version": 1, "sources": found}, indent=2))
        return 0
    for one in told:
        print(f"{one.name:<12}{'' if one.why else one.text}{f'-  {one.why}' if one.why else ''}")
        for column, why in one.never.items():
            print(f"{'':<12}without {column}: {why}")
    there = sum(not one.why for one in told)
    print(f"{texts.counted(there, 'source')} of {len(told)} on this node")
    return 0


def look(without: str = "") -> list[_Told]:
    """Open every source on this node, with the rights of who asks; none that hangs holds up the others."""
    from piolet.observe import choosing
    from piolet.observe.lanes import Lane, wait
    from piolet.observe.lists import listed

    left_out = listed(without)[0]
    done = threading.Condition()
    lanes: list[tuple[str, str, str, Lane | None]] = []

    def add(name: str, text: str, scope: str, work: Callable[[], Any]) -> None:
        lane = None
        if name not in left_out:
            lane = Lane(name, done)
            lane.give(work)
        lanes.append((name, text, scope, lane))

    add(choosing.GPU, "NVML, and GPM where there is: utilisation, memory, power, pipes", "node", _gpu)
    add(choosing.HOST, "processors, memory, I/O and pressure of the step", "step", lambda: ("", {}))
    for kind in choosing.classes():
        add(kind.name, kind.text, kind.scope, lambda kind=kind: _open(kind))  # type: ignore[misc]
    wait([lane for *_, lane in lanes if lane is not None], done, _ANSWER_S)
    found = []
    for name, text, scope, lane in lanes:
        try:
            why, never = lane.take() if lane is not None else ("[observe] without leaves it out", {})
        except Exception as error:  # noqa: BLE001 - a source is a plug-in, and what it failed of is what is asked
            why, never = str(error) or type(error).__name__, {}
        found.append(_Told(name, text, scope, why, never))
    return found


def _gpu() -> tuple[str, dict[str, str]]:
    from piolet.observe.gpus import Gpus

    read = Gpus().read(time.monotonic_ns())
    return ("" if read.devices else "; ".join(f"{name}: {why}" for name, why in read.why.items())), {}


def _open(kind: Any) -> tuple[str, dict[str, str]]:
    from piolet.api import OF_STEP, Place, Unavailable

    if kind.scope == OF_STEP:
        return "", {}
    source = kind()
    try:
        source.open(Place())
    except Unavailable as error:
        more = "; pioletd has it opened for its sampler" if kind.needs and os.geteuid() and "root" in str(error) else ""
        return f"{error}{more}", {}
    return "", source.never
