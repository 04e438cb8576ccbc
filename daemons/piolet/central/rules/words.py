"""What people read: the sentence of a conclusion, and what a user is told at the end of a failed srun."""

from __future__ import annotations

from collections.abc import Sequence

from piolet.base.texts import counted as number
from piolet.central.rules.language import LIFETIME, Rule
from piolet.central.rules.trust import Evidence


def span(seconds: float) -> str:
    """Return a time as people say it: "24 hours", "7 days", "3 minutes"."""
    for unit, size, least in (("day", 86400.0, 2), ("hour", 3600.0, 1), ("minute", 60.0, 1)):
        if seconds >= least * size:
            many = seconds / size
            return number(int(many), unit) if many == int(many) else f"{many:.1f} {unit}s"
    return number(round(seconds), "second")


def sentence(rule: Rule, node: str, subject: str, counted: Sequence[Evidence], values: dict[str, int | float]) -> str:
    """Return a conclusion in words with counts."""
    where = f"{node} ({subject})" if subject else node
    if rule.missing:
        return f"{where}: {rule.about}: nothing for {span(rule.missing)}"
    many = values.get("lifetime", len(counted))
    users = {one.uid for one in counted if one.uid is not None}
    far = "in all" if "lifetime" in values or rule.window == LIFETIME else f"in {span(rule.window)}"
    of = f" of {number(len(users), 'user')}" if "users" in values else ""
    if "episodes" in values:
        of += f" in {number(int(values['episodes']), 'episode')}"
    return f"{where}: {rule.about}: {number(int(many), 'time')}{of} {far}"
