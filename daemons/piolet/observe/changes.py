"""What changed since the last good run of the same job, as data. Pure.

A run is good that Slurm calls COMPLETED; the same job is one of the same user and name. Saturations differ where the
95 % interval of their difference leaves out 0 (score/compare.py): what lies within it is no change.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from piolet.base import hostlist
from piolet.observe.job import Change, Changes, Environment, Job, Score
from piolet.slurm.onejob import ToldRun

_LINES = 8


def _array(shown: str) -> str:
    """Return which array or heterogeneous job it is of, or its own name: tasks of one are no runs before each other."""
    return re.split(r"[_+]", shown)[0]


@dataclass(frozen=True)
class Compared:
    """A step's saturation less that of before, 0..1: its 95 % interval, and what else differs."""

    low: float
    high: float
    unlike: tuple[str, ...] = ()


def last_good(job: Job, runs: Sequence[ToldRun]) -> ToldRun | None:
    """Return the last run of the same name that ended well before this one began."""
    began = job.now.start or job.submit or 0.0
    good = [
        one for one in runs
        if one.name == job.name and one.state == "COMPLETED" and one.number != job.number and one.uid == job.uid
        and one.end is not None and one.end <= began and _array(one.shown) != _array(job.job)
    ]  # fmt: skip
    return max(good, key=lambda one: one.end or 0.0, default=None)


def between(before: Job, now: Job, compared: Mapping[str, Compared | str]) -> Changes:
    """Return what is not as it was.

    compared    by the step's number, how saturations differ, or why that cannot be said
    """
    changes: list[Change] = []
    same: list[str] = []
    unknown: list[str] = []
    pairs = (
        _plain("command", before.command, now.command),
        _plain("partition", before.partition, now.partition),
        _plain("GPUs", *(str(one.gpus) if one.gpus is not None else "" for one in (before, now))),
        _nodes(before, now),
        *_environments(before.environments, now.environments),
        *_scores(before.scores, now.scores, compared),
    )
    for name, change, why_not in pairs:
        if change is not None:
            changes.append(change)
        elif why_not == NEITHER:
            continue
        elif why_not:
            unknown.append(f"{name}: {why_not}")
        else:
            same.append(name)
    return Changes(before.job, before.now.end, tuple(changes), tuple(same), tuple(unknown))


NEITHER = "neither says"
Found = tuple[str, Change | None, str]
"""What was compared, what is not as it was, and why it could not be compared."""


def _plain(name: str, before: str, now: str) -> Found:
    if not before or not now:
        return name, None, NEITHER if before == now else "it is known of one of the two only"
    return name, None if before == now else Change(name, before, now, f"{name}: {now}, and was {before}"), ""


def _nodes(before: Job, now: Job) -> Found:
    old, new = before.now.nodes, now.now.nodes
    if not old or not new:
        return "nodes", None, "it did not get any yet" if not new else "they are not known"
    if set(old) == set(new):
        return "nodes", None, ""
    added = hostlist.compress([node for node in new if node not in old])
    gone = hostlist.compress([node for node in old if node not in new])
    parts = [f"{added} {'are' if len(set(new) - set(old)) > 1 else 'is'} new" if added else ""]
    parts.append(f"{gone} not there" if gone else "")
    text = f"nodes: {', '.join(filter(None, parts))}; {len(new)} now, {len(old)} before"
    return "nodes", Change("nodes", hostlist.compress(old), hostlist.compress(new), text), ""


def _environments(before: Sequence[Environment], now: Sequence[Environment]) -> Iterator[Found]:
    if not before and not now:
        return
    if len(before) != 1 or len(now) != 1:
        why = "of one of the two no environment is known" if not before or not now else "their steps had several"
        yield "environment", None, why
        return
    old, new = before[0], now[0]
    yield _plain("image", old.image or "none", new.image or "none")
    yield _plain("definition files", ", ".join(old.files), ", ".join(new.files))
    # The image stands on a line of its own, which is said already.
    texts = [
        [line for line in one.definition.splitlines() if line and not line.startswith(("image = ", "# step", "# from"))]
        for one in (old, new)
    ]
    if texts[0] == texts[1]:
        yield "definition", None, ""
        return
    lines = [
        line for line in difflib.ndiff(texts[0], texts[1]) if line[:1] in "+-"
    ]  # fmt: skip
    shown = "; ".join(f"{line[0]} {line[2:].strip()[:120]}" for line in lines[:_LINES])
    more = f"; and {len(lines) - _LINES} more lines" if len(lines) > _LINES else ""
    gone, added = ("\n".join(line[2:] for line in lines if line[0] == sign) for sign in "-+")
    yield "definition", Change("definition", gone, added, f"definition: {shown}{more}"), ""


def _scores(before: Sequence[Score], now: Sequence[Score], compared: Mapping[str, Compared | str]) -> Iterator[Found]:
    old, new = by_step(before), by_step(now)
    for step in sorted(old.keys() | new.keys()):
        if step not in old or step not in new:
            yield f"saturation of step {step}", None, "there is a score of one of the two only"
            continue
        yield _plain("driver and kernel", "; ".join(old[step].software), "; ".join(new[step].software))
        found = compared.get(step, "it was not compared")
        name = f"saturation of step {step}"
        if isinstance(found, str):
            yield name, None, found
            continue
        low, high = 100 * found.low, 100 * found.high
        if not found.low > 0 and not found.high < 0:
            yield name, None, f"it cannot be told apart: {low:+.1f} to {high:+.1f} points (95 %)"
            continue
        texts = [_share(one.figures.get("saturation")) for one in (old[step], new[step])]
        text = f"{name}: {texts[1]}, and was {texts[0]}: by {low:+.1f} to {high:+.1f} points (95 %)"
        yield name, Change(name, texts[0], texts[1], text + "".join(f"; but {one}" for one in found.unlike)), ""


def by_step(scores: Sequence[Score]) -> dict[str, Score]:
    """Return scores by the step's number; of several runs the last."""
    return {one.step.partition(".")[2].partition("-")[0]: one for one in scores}


def _share(figure: Any) -> str:
    """Return a figure of a score: a value, a range, a bound, or that it is unknown."""
    said = figure if isinstance(figure, dict) else {}
    low, high = (f"{100 * float(said[name]):.3g}" if said.get(name) is not None else "" for name in ("low", "high"))
    if low and high:
        return f"{low} %" if low == high else f"{low} to {high} %"
    return f"at least {low} %" if low else f"at most {high} %" if high else "unknown"
