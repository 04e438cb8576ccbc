"""Events made for tests, and what rules conclude of them."""

from __future__ import annotations

import dataclasses
import importlib.resources
from collections.abc import Iterable
from itertools import count
from typing import Any

from piolet.central.conclusions import Conclusion
from piolet.central.rules.engine import Engine
from piolet.central.rules.language import Rule, parse
from piolet.events.envelope import KERNEL, ROOT, SITE, USER, Event
from piolet.events.kinds import KINDS

START = 1_800_000_000.0
MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
CATALOGUE = importlib.resources.files("piolet.central.rules").joinpath("catalogue.toml").read_text()
_numbers = count(1)

RULE = """
[few]
about = "flaps"
source = "a test"
date = 2026-11-29
events = ["link.flap"]
window = "1h"
when = "count >= 3"
then = "ticket"
recovery = ["repair"]
"""


def event(kind: str, after: float, node: str = "n1", **rest: Any) -> Event:
    """Return an event `after` seconds from the start; of a kind's only or mightiest source unless another is given."""
    source = rest.pop("source", next(one for one in (KERNEL, ROOT, SITE, USER) if one in KINDS[kind].sources))
    rest = {"epoch": "e" * 16, "seq": next(_numbers), **rest}
    return Event("c1", node, time=START + after, kind=kind, source=source, **rest)


def rules(text: str = RULE, **changes: str) -> tuple[Rule, ...]:
    """Return the rules of a text, in which `key = …` of each of `changes` is put in the place of what is there."""
    for key, value in changes.items():
        lines = [f"{key} = {value}" if line.startswith(f"{key} =") else line for line in text.splitlines()]
        text = "\n".join(lines if any(line.startswith(f"{key} =") for line in lines) else [*lines, f"{key} = {value}"])
    return parse("rules.toml", text)


def of_catalogue(name: str) -> Rule:
    """Return a rule of ours."""
    return next(rule for rule in parse("catalogue.toml", CATALOGUE) if rule.name == name)


def concluded(which: Iterable[Rule], events: Iterable[Event], *, until: float | None = None) -> list[Conclusion]:
    """Return what is concluded; each event is taken when it happens, and time goes on to `until` at the end."""
    engine = Engine(which)
    out = [one for event in events for one in engine.take(event)]
    return out + (waited(engine, until) if until is not None else [])


def waited(engine: Engine, until: float) -> list[Conclusion]:
    """Return what becomes due until then, told by events of another node that no rule counts."""
    return [one for after in _steps(engine, until) for one in engine.take(event("site.note", after, "elsewhere"))]


def _steps(engine: Engine, until: float) -> Iterable[float]:
    now = engine.now - START if engine.now > START else 0.0
    while now < until:
        now = min(until, now + MINUTE) if until - now < 2 * DAY else min(until, now + HOUR)
        yield now


def again(of: Event, **changes: Any) -> Event:
    """Return an event that differs in something."""
    return dataclasses.replace(of, **changes)
