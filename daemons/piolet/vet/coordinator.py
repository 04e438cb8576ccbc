"""Leads a vetting of several nodes: collects their lines, arranges meetings, and finds who is at fault.

It does no input or output of its own: `feed` takes what a node wrote, `lose` tells that it is gone, `advance` goes
on, `orders` is what has to be sent to all nodes. Every wait has a deadline, so that a node that says nothing costs
its own verdict and nobody else's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from piolet.api import FAIL, INCONCLUSIVE, PASS, Verdict
from piolet.vet import localise, verdicts
from piolet.vet.localise import Meeting
from piolet.vet.runner import records
from piolet.vet.runner.plan import MEETING_SLACK_S as _SLACK_S
from piolet.vet.runner.plan import Plan, Task
from piolet.vet.runner.records import Record

_Wait = tuple[Callable[[], bool], float]


@dataclass(frozen=True)
class Found:
    """What a vetting came to: records, the nodes that did not tell everything and why, and notes for people."""

    records: Sequence[Record]
    lost: Mapping[str, str]
    notes: Sequence[str] = ()

    def decision(self, plan: Plan, nodes: Sequence[str]) -> verdicts.Decision:
        """Return what it means for `nodes`."""
        return verdicts.decide(plan, nodes, self.records, self.lost, None, self.notes)


class Coordinator:
    """One vetting. `clock` gives monotonic seconds; `start_s` is what nodes may need before their budget begins."""

    def __init__(self, plan: Plan, nodes: Sequence[str], clock: Callable[[], float], start_s: float = 0.0) -> None:
        self._plan = plan
        self._nodes = list(nodes)
        self._clock = clock
        self._start_s = start_s
        self._records: list[Record] = []
        self._lost: dict[str, str] = {}
        self._where: dict[str, list[Any]] = {}
        self._ended: set[str] = set()
        self._met: dict[str, Record] = {}
        self._round = 0
        self._orders: list[bytes] = []
        self._notes: list[str] = []
        self._budget_end = math.inf
        self.done = False
        self._script = self._play()
        self._until: _Wait = next(self._script)

    @property
    def deadline(self) -> float:
        """When `advance` has to be called at the latest."""
        return self._until[1]

    @property
    def found(self) -> Found:
        """What is known so far."""
        return Found(list(self._records), dict(self._lost), list(self._notes))

    def has_ended(self, node: str) -> bool:
        """Return whether `node` has told everything that it judges by itself."""
        return node in self._ended

    def orders(self) -> list[bytes]:
        """Return the lines that have to be sent to all nodes, once."""
        found, self._orders = self._orders, []
        return found

    def feed(self, node: str, line: bytes) -> None:
        """Take a line that `node` wrote; what is none of ours is the application's, and is dropped."""
        decoded = records.decode(line)
        if decoded is None or node not in self._nodes or node in self._lost:
            return
        kind, content = decoded
        if kind == "end":
            self._ended.add(node)
        elif kind == "address" and isinstance(content.get("host"), str) and isinstance(content.get("port"), int):
            self._where[node] = [content["host"], content["port"]]
        elif kind == "verdict":
            self._take(node, content)
        elif kind == "met" and content.pop("round", None) == self._round:
            record = records.to_record({**content, "node": node})
            if record is not None:
                self._met[node] = record

    def lose(self, node: str, reason: str) -> None:
        """Tell that nothing more will come from `node`: its task ended, its node died."""
        if node in self._nodes and not self.done:
            self._lost.setdefault(node, reason)

    def advance(self) -> None:
        """Go on as far as possible."""
        while not self.done and (self._until[0]() or self._clock() >= self._until[1]):
            try:
                self._until = next(self._script)
            except StopIteration:
                self.done = True

    def _take(self, node: str, content: dict[str, Any]) -> None:
        record = records.to_record({**content, "node": node})  # a node speaks for itself only
        if record is not None:
            self._records.append(record)

    def _alive(self) -> list[str]:
        return [node for node in self._nodes if node not in self._lost]

    # -- what happens, in order

    def _play(self) -> Iterator[_Wait]:
        yield (
            lambda: self._ended.issuperset(self._alive()),
            self._clock() + self._start_s + self._plan.budget_s + _SLACK_S,
        )
        for node in self._alive():
            if node not in self._ended:
                self.lose(node, "it did not finish within the budget")
        # The meetings have a budget of their own, so that one slow node does not cost the others theirs.
        self._budget_end = self._clock() + self._plan.budget_s
        for task in self._plan.tasks:
            if task.scope == "pair":
                found = yield from self._pairs(task, int(task.parameters.get("rounds", 0)))
                self._judge(task, found)
            elif task.scope == "group":
                yield from self._group(task)
        self._orders.append(records.encode("stop", {}))

    def _pairs(self, task: Task, most: int = 0) -> Generator[_Wait, None, list[Meeting]]:
        """Let everybody meet everybody, suspects once more; return what came of it."""
        found: list[Meeting] = []
        nodes = [node for node in self._alive() if task.scope == "group" or node in self._where]
        schedule = localise.rounds(nodes)
        for number, pairs in enumerate(schedule[: most or None]):
            if self._clock() >= self._budget_end and found:
                left = len(schedule[: most or None]) - number
                self._notes.append(f"{task.name}: the budget was spent, {left} rounds were left out")
                break
            yield from self._meet(task, [list(pair) for pair in pairs], found)
        suspected = localise.suspects(found, task.better, task.effect)
        # With most nodes suspected there are no good ones to compare with.
        if suspected and len(suspected) < len(nodes):
            for pairs in localise.pair_again(suspected, nodes):
                yield from self._meet(task, [list(pair) for pair in pairs], found)
        return found

    def _group(self, task: Task) -> Iterator[_Wait]:
        """All together; only when that is bad, pairs tell why. A slow collective names nobody."""
        found: list[Meeting] = []
        nodes = self._alive()
        if len(nodes) < 2:
            self._all(task, Verdict(INCONCLUSIVE, "there is no other node to measure with"))
            return
        yield from self._meet(task, [nodes], found)
        told = {node: self._met.get(node) for node in nodes}
        if not found[0].bad and found[0].value is not None:
            self._records += [record for record in told.values() if record is not None]
            return
        silent = {record.reason if record and record.outcome == INCONCLUSIVE else "" for record in told.values()}
        if len(silent) == 1 and "" not in silent:
            # What no node can do, such as to load a library, pairs cannot do either.
            self._all(task, Verdict(INCONCLUSIVE, silent.pop()))
            return
        pairs = yield from self._pairs(task)
        # A node that was lost explains it.
        self._judge(task, pairs, "" if self._lost.keys() & told.keys() else _why(told))

    def _meet(self, task: Task, sets: list[list[str]], found: list[Meeting]) -> Iterator[_Wait]:
        """One round: send the order, wait for those who measure, and add what came of it to `found`."""
        sets = [one for one in sets if not self._lost.keys() & set(one)]
        if not sets:
            return
        self._round += 1
        self._met = {}
        speakers = {node for one in sets for node in (one if task.scope == "group" else one[:1])}
        order = {"eval": task.name, "round": self._round, "sets": sets, "where": {}}
        if task.scope == "pair":
            order["where"] = {one[1]: self._where[one[1]] for one in sets}
        self._orders.append(records.encode("meet", order))
        end = self._clock() + task.timeout_s + _SLACK_S
        yield lambda: self._met.keys() >= speakers - self._lost.keys(), end
        for one in sets:
            own = [self._met.get(node) for node in (one if task.scope == "group" else one[:1])]
            found.append(_meeting(one, own))

    def _judge(self, task: Task, found: Sequence[Meeting], together: str = "") -> None:
        """Make a record for every node out of the meetings of pairs; `together`: why that of all nodes was bad."""
        faults, notes = localise.localise(found, task.better, task.effect)
        named = {fault.node: fault for fault in faults}
        limit, bad = localise.bad_meetings(found, task.better, task.effect)
        self._notes += [f"{task.name}: {note}" for note in notes]
        if together and not named:
            self._notes.append(f"{task.name}: all nodes together are bad, and pairs name nobody: {together}")
        for node in self._alive():
            own = [meeting for meeting in found if node in meeting.pair]
            wrong = [meeting for meeting in bad if node in meeting.pair and named.keys().isdisjoint(meeting.pair)]
            others = [meeting for meeting in own if (named.keys() - {node}).isdisjoint(meeting.pair)]
            values = [meeting.value for meeting in others if meeting.value is not None]
            best = (min(values) if task.better == "higher" else max(values)) if values else None
            verdict = Verdict(PASS, "", "worst meeting", best, limit, task.unit)
            if node in named:
                fault = named[node]
                verdict = Verdict(FAIL, fault.reason, "median of its meetings", fault.value, fault.limit, task.unit)
            elif not others:
                verdict = Verdict(INCONCLUSIVE, "it met no other good node")
            elif len(wrong) * 2 > len(others):
                why = next((meeting.reason for meeting in wrong if meeting.reason), "it is slower than others")
                verdict = Verdict(
                    INCONCLUSIVE, f"bad with {_partners(node, wrong)}, and who is at fault is open: {why}"
                )
            elif together and not named:
                verdict = Verdict(INCONCLUSIVE, f"bad with all nodes together, and who is at fault is open: {together}")
            self._records.append(records.record(node, task.name, task.kind, verdict, 0.0))

    def _all(self, task: Task, verdict: Verdict) -> None:
        for node in self._alive():
            self._records.append(records.record(node, task.name, task.kind, verdict, 0.0))


def _meeting(members: list[str], own: Sequence[Record | None]) -> Meeting:
    pair = (members[0], members[1])
    told = [record for record in own if record is not None]
    values = [record.value for record in told if record.value is not None]
    reason = next((record.reason for record in told if record.reason), "")
    if len(told) < len(own):
        return Meeting(pair, None, True, reason or "no answer")
    bad = any(record.outcome != PASS for record in told)
    return Meeting(pair, min(values) if values else None, bad, reason)


def _why(told: Mapping[str, Record | None]) -> str:
    """Return why a meeting of all was bad: what the fewest nodes say comes first, since it is nearest to the cause."""
    said: dict[str, list[str]] = {}
    for node, record in told.items():
        reason = "no answer" if record is None else record.reason or "it measured nothing"
        if record is None or record.outcome != PASS or record.value is None:
            said.setdefault(reason, []).append(node)
    first = sorted(said, key=lambda reason: len(said[reason]))[:2]
    return "; ".join(f"{said[reason][0]}: {reason}" for reason in first)


def _partners(node: str, meetings: Sequence[Meeting]) -> str:
    return ", ".join(sorted({other for meeting in meetings for other in meeting.pair if other != node})[:3])
