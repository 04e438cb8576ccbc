"""Why there are no samples of a time: every gap has a reason, which the node, its boots or Slurm tell. Pure.

The source of these rows of `quality` is "samples". A gap that nothing explains says so in words, too: it is a fault of
the sampler's, and findable.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from piolet.observe.gathering import Facts, Run, ns

SOURCE, CLOCK = "samples", "clock"
UNKNOWN = "no sample was taken, and nothing says why"
_SOON_S = 10.0  # what is said of a gap is said so soon after it
_LATE_S = 310.0  # and of records that a full disk did not take, of which much is told at once, at the latest then

Remarks = Sequence[tuple[str, int, int, float, str, str]]
"""(epoch, first, last, time, kind, why), as the catalogue has them."""
_OWN = {  # in this order
    "node.start": "the sampler was restarted",
    "spool.dropped": "the node did not write them: {why}",
}
_NUMBERED = {"spool.lost": "the node removed them before they were taken: {why}", "refused": "{why}", "gone": "{why}"}


@dataclass(frozen=True)
class Gap:
    """A time of a node without samples, in seconds since 1970."""

    node: str
    start: float
    end: float
    reason: str


def gaps(
    facts: Facts, nodes: Iterable[str], begin: float, end: float, remarks: Mapping[str, Remarks], state: str = ""
) -> Iterator[Gap]:
    """Yield the gaps of a step from `begin` to `end`, by node.

    nodes   all that it has; also those of which nothing came
    state   Slurm's word for how the job ended, if it is known
    """
    for node in sorted({*nodes, *facts.runs}):
        own = remarks.get(node, ())
        runs = sorted(facts.runs.get(node, ()), key=lambda run: run.start)
        near = 0.5 * facts.interval(node)
        last = facts.ended.get(node, end)
        if not runs:
            why = _told(own, None, begin, last) or "nothing came of this node" + _failed(state)
            if node in facts.ended:
                why = "the step was over before a sample could be taken"
            yield Gap(node, begin, last, why)
            continue
        if runs[0].start - begin > near:
            why = _told(own, None, begin, runs[0].start)
            if why == _OWN["node.start"]:
                why = "the sampler began later than the step"
            if not why:
                late = runs[0].start - begin > 3 * facts.interval(node)
                why = UNKNOWN if late else "the sampler had not found the step yet"
            yield Gap(node, begin, runs[0].start, why)
        covered = runs[0].end
        for before, run in pairwise(runs):
            if run.start - covered > near:
                yield Gap(node, covered, run.start, _between(own, before, run))
            covered = max(covered, run.end)
        if last - covered > near:
            found = _told(own, runs[-1], covered, last)
            ending = "the step ended between two samples" if node in facts.ended and last - covered < 4 * near else ""
            yield Gap(node, covered, last, ending or found or "nothing more came of this node" + _failed(state))


def _failed(state: str) -> str:
    return ": Slurm says NODE_FAIL" if state == "NODE_FAIL" else ""


def _between(remarks: Remarks, before: Run, run: Run) -> str:
    if before.epoch == run.epoch and (why := _numbered(remarks, before.epoch, before.last + 1, run.first - 1)):
        also = _of_kind(remarks, "spool.dropped", before.end, run.start + _SOON_S)
        return f"{why}; {also}" if also else why
    if before.boot != run.boot:
        return "the node started again"
    if why := _told(remarks, None, before.end, run.start):
        return why
    if before.epoch != run.epoch:
        return "the node's journal was lost and made anew"
    return UNKNOWN


def _numbered(remarks: Remarks, epoch: str, first: int, last: int) -> str:
    """Return why records of a stream are not here."""
    found = [one for one in remarks if one[0] == epoch and one[1] <= last and one[2] >= first]
    for kind, text in _NUMBERED.items():
        for one in found:
            if one[4] == kind:
                return text.format(why=one[5])
    return ""


def _told(remarks: Remarks, before: Run | None, start: float, end: float) -> str:
    """Return what a node says of itself in a time."""
    if before is not None and (why := _numbered(remarks, before.epoch, before.last + 1, 2**63)):
        return why
    for late in (_SOON_S, _LATE_S):
        for kind in (*_OWN, "spool.lost", "gone"):
            # A sampler that begins does so before its first sample.
            if why := _of_kind(remarks, kind, start, end + (1.0 if kind == "node.start" else late)):
                return why
    return ""


def _of_kind(remarks: Remarks, kind: str, start: float, end: float) -> str:
    text = {**_OWN, **_NUMBERED}[kind]
    return next((text.format(why=one[5]) for one in remarks if one[4] == kind and start - 1.0 <= one[3] <= end), "")


def rows(facts: Facts, found: Iterable[Gap], begin: float, end: float) -> dict[str, list[Any]]:
    """Return rows of `quality`: gaps, sources that a node does not have, clocks that were off, damaged records."""
    made: list[tuple[str, str, float, float, str, int | None]] = [
        (gap.node, SOURCE, gap.start, gap.end, gap.reason, None) for gap in found
    ]
    for node, said in sorted(facts.nodes.items()):
        sources = said.get("sources")
        for source, why in sorted(sources.items()) if isinstance(sources, dict) else ():
            if why:
                made.append((node, str(source), begin, end, str(why), None))
    for node, seconds in sorted(facts.moved.items()):
        which = f"{abs(seconds):.0f} s {'ahead' if seconds > 0 else 'behind'}"
        made.append((node, CLOCK, begin, end, f"the node's clock was up to {which}; times were put right", None))
    for node, count in sorted(facts.damaged.items()):
        made.append((node, SOURCE, begin, end, "records were damaged", count))
    names = ("node", "source", "start", "end", "reason", "values")
    columns = dict(zip(names, map(list, zip(*made, strict=True)), strict=True)) if made else {}
    for name in ("start", "end"):
        if name in columns:
            columns[name] = [ns(seconds) for seconds in columns[name]]
    return columns


def coverage(facts: Facts, nodes: Iterable[str], begin: float, end: float) -> float:
    """Return the share of a step's time, over all its nodes, of which there are samples."""
    wanted = covered = 0.0
    for node in {*nodes, *facts.runs}:
        last = min(facts.ended.get(node, end), end)
        wanted += max(last - begin, 0.0)
        at = begin
        for run in sorted(facts.runs.get(node, ()), key=lambda run: run.start):
            covered += max(0.0, min(run.end, last) - max(run.start, at))
            at = max(at, run.end)
    return covered / wanted if wanted else 0.0
