"""Leads a vetting of several nodes: collects their lines, arranges meetings, and finds who is at fault.

It does no input or output of its own: `feed` takes what a node wrote, `lose` tells that it is gone, `advance` goes
on, `orders` is what has to be sent to all nodes. Every wait has a deadline, so that a node that says nothing costs
its own verdict and nobody else's. What it does for a line, a meeting or a lost node does not grow with the nodes.
"""

from __future__ import annotations

import math
import secrets
import sys
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from statistics import median
from typing import Any

from piolet.api import EITHER, FAIL, INCONCLUSIVE, NODE, PASS, USER, Verdict
from piolet.base.errors import VetError
from piolet.vet import localise, verdicts
from piolet.vet.localise import Meeting
from piolet.vet.runner import meeting, records, schedule
from piolet.vet.runner.meeting import Row
from piolet.vet.runner.plan import Plan, Task, apart_s, meeting_slack_s
from piolet.vet.runner.records import Record

_JUDGING_S = 10.0
_SHARED = ("eval", "kind", "outcome", "measure", "unit")
_Wait = tuple[Callable[[], bool], float]


@dataclass(frozen=True)
class Found:
    """What a vetting came to: records, the nodes that did not tell everything and why, and notes for people."""

    records: Sequence[Record]
    lost: Mapping[str, str]
    notes: Sequence[str] = ()

    def decision(
        self, plan: Plan, nodes: Sequence[str], gpus: Mapping[str, int] | None = None
    ) -> verdicts.Decision:  # fmt: skip
        """Return what it means for `nodes`; `gpus`: how many Slurm has of each."""
        return verdicts.decide(plan, nodes, self.records, self.lost, None, self.notes, gpus)


class Coordinator:
    """One vetting. `clock` gives monotonic seconds; `start_s` is what nodes may need before their budget begins.

    leaf   the switch of each node, where that is known
    """

    def __init__(
        self, plan: Plan, nodes: Sequence[str], clock: Callable[[], float], start_s: float = 0.0,
        leaf: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self._leaf = leaf
        self._plan = plan
        self._nodes = list(nodes)
        self._clock = clock
        self._start_s = start_s
        self._slack_s = meeting_slack_s(len(self._nodes))
        self._records: list[Record] = []
        self._lost: dict[str, str] = {}
        self._where: dict[str, tuple[str, int]] = {}
        self._known = set(nodes)
        self._ended: set[str] = set()
        self._open = set(nodes)  # those that have not told everything by themselves, and are not lost
        self._rows: list[Row] = []
        self._names: list[str] = []  # theirs
        self._numbers: dict[str, int] = {}
        self._untold: list[str] = []  # lost ones, of which the nodes do not know yet
        self._met: dict[str, Record] = {}
        self._awaited: set[str] = set()  # of the round that is on
        self._silent: set[str] = set()
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

    def feed(self, node: str, line: bytes) -> bool:
        """Take a line that `node` wrote, and return whether it is one of ours; else it is the application's."""
        decoded = records.decode(line)
        if decoded is None:
            return False
        if node in self._known and node not in self._lost:
            self._hear(node, *decoded)
        return True

    def _hear(self, node: str, kind: str, content: dict[str, Any]) -> None:
        if kind == "end":
            self._ended.add(node)
            self._open.discard(node)
        elif kind == "address" and isinstance(content.get("host"), str) and isinstance(content.get("port"), int):
            self._where[node] = (content["host"], content["port"])
        elif kind == "verdict":
            self._take(node, content)
        elif kind == "met" and content.pop("round", None) == self._round:
            record = records.to_record({**content, "node": node})
            if record is not None:
                self._met[node] = record
                self._awaited.discard(node)
        elif kind == "failed" and isinstance(content.get("reason"), str):
            self.lose(node, content["reason"])

    def lose(self, node: str, reason: str) -> None:
        """Tell that nothing more will come from `node`: its task ended, its node died."""
        if node in self._known and not self.done and node not in self._lost:
            self._lost[node] = reason
            self._untold.append(node)
            self._open.discard(node)
            self._awaited.discard(node)

    def advance(self) -> None:
        """Go on as far as possible."""
        while not self.done and (self._until[0]() or self._clock() >= self._until[1]):
            try:
                self._until = next(self._script)
            except StopIteration:
                self.done = True

    def _take(self, node: str, content: dict[str, Any]) -> None:
        for name in _SHARED:  # what all nodes say in the same words is kept once
            word = content.get(name)
            if isinstance(word, str):
                content[name] = sys.intern(word)
        record = records.to_record({**content, "node": node})  # a node speaks for itself only
        if record is not None:
            self._records.append(record)

    def _alive(self) -> list[str]:
        return [node for node in self._nodes if node not in self._lost]

    # -- what happens, in order

    def _play(self) -> Iterator[_Wait]:
        yield lambda: not self._open, self._clock() + self._start_s + self._plan.budget_s + self._slack_s
        for node in self._alive():
            if node not in self._ended:
                self.lose(node, "it did not finish within the budget")
        meetings = [task for task in self._plan.tasks if task.scope != "node"]
        if meetings:
            self._tell_table()
        # The meetings have a budget of their own, so that one slow node does not cost the others theirs.
        self._budget_end = self._clock() + self._plan.budget_s
        for task in meetings:
            if task.scope == "pair":
                found, scheduled = yield from self._pairs(task, int(task.parameters.get("rounds", 0)))
                self._judge(task, found, scheduled)
            else:
                yield from self._group(task)
        self._orders.append(meeting.line("stop", {}))

    def _tell_table(self) -> None:
        """Tell all nodes who is there; those that are lost already are in no row."""
        self._rows = [Row(node, *self._where.get(node, ("", 0))) for node in self._alive()]
        self._names = [row.name for row in self._rows]
        self._numbers = {name: number for number, name in enumerate(self._names)}
        self._untold = []
        self._orders += meeting.table_lines(self._rows)

    def _pairs(self, task: Task, most: int = 0) -> Generator[_Wait, None, tuple[list[Meeting], int]]:
        """Let each node meet some others, suspects once more; return what came of it, and how many were scheduled.

        Partners are those of a random schedule, so they are of other switches and racks for the most part.
        `most` 0: as many rounds as tell slow nodes from good ones.
        """
        found: list[Meeting] = []
        seed = secrets.randbits(32)
        order = meeting.scheduled(self._rows, seed, task.scope == "pair")
        turns = min(most or schedule.enough(len(order)), schedule.turns(len(order)))
        for turn in range(turns):
            if self._clock() >= self._budget_end and found:
                self._notes.append(f"{task.name}: the budget was spent, {turns - turn} rounds were left out")
                break
            pairs = [(self._names[a], self._names[b]) for a, b in schedule.pairs(order, turn)]
            yield from self._meet(task, pairs, found, {"seed": seed, "turn": turn})
        scheduled = len(found)
        suspected = localise.suspects(found, task.better, task.effect)
        # With most nodes suspected there are no good ones to compare with.
        if suspected and len(suspected) * 2 <= len(order):
            nodes = [self._names[number] for number in order if self._names[number] not in self._lost]
            for pairs in islice(localise.pair_again(suspected, nodes), 2):
                yield from self._meet(task, pairs, found, None)
        return found, scheduled

    def _group(self, task: Task) -> Iterator[_Wait]:
        """All, in groups; only when one of them is bad, pairs tell why. A slow collective names nobody."""
        nodes = self._alive()
        if len(nodes) < 2:
            self._all(task, Verdict(INCONCLUSIVE, "there is no other node to measure with", whose=USER))
            return
        most = max(2, int(task.parameters.get("together", schedule.TOGETHER)))
        yield from self._round_of(task, nodes, [meeting.line("meet", {**self._next(task), "all": most})])
        told = {node: self._met.get(node) for node in nodes}
        met = [nodes[group.start : group.stop] for group in schedule.groups(len(nodes), most)]
        together = [_meeting(members, [told[node] for node in members]) for members in met]
        if all(not one.bad and one.value is not None for one in together):
            self._records += [record for record in told.values() if record is not None]
            return
        silent = {record.reason if record and record.outcome == INCONCLUSIVE else "" for record in told.values()}
        if len(silent) == 1 and "" not in silent:
            # What no node can do, such as to load a library, pairs cannot do either.
            whose = {record.whose for record in told.values() if record}
            said = Verdict(INCONCLUSIVE, silent.pop(), whose=whose.pop() if len(whose) == 1 else EITHER)
            self._all(task, said)
            return
        pairs, scheduled = yield from self._pairs(task)
        # A node that was lost explains it.
        self._judge(task, pairs, scheduled, "" if self._lost.keys() & told.keys() else _why(told))

    def _meet(
        self, task: Task, pairs: Sequence[localise.Pair], found: list[Meeting], turn: Mapping[str, int] | None
    ) -> Iterator[_Wait]:
        """One round of pairs: order it, wait for those who measure, and add what came of it to `found`.

        turn   what the schedule makes these pairs of; None: they are told one by one
        """
        if self._lost:
            pairs = [pair for pair in pairs if self._lost.keys().isdisjoint(pair)]
        if not pairs:
            return
        both = task.scope == "group"
        content = self._next(task)
        if turn is not None:
            lines = [meeting.line("meet", {**content, **turn})]
        else:
            lines = list(meeting.pair_lines(content, [(self._numbers[a], self._numbers[b]) for a, b in pairs]))
        speakers = chain.from_iterable(pairs) if both else (first for first, _ in pairs)
        yield from self._round_of(task, speakers, lines)
        for pair in pairs:
            found.append(_meeting(pair, [self._met.get(node) for node in (pair if both else pair[:1])]))

    def _next(self, task: Task) -> dict[str, Any]:
        """Begin a round and return what its order says in any case."""
        self._round += 1
        return {"eval": task.name, "round": self._round}

    def _round_of(self, task: Task, speakers: Iterable[str], lines: Sequence[bytes]) -> Iterator[_Wait]:
        """Order a round and wait for the answers."""
        self._met = {}
        self._awaited = set(speakers) - self._lost.keys()
        gone = [self._numbers[node] for node in self._untold if node in self._numbers]
        self._untold = []
        self._orders += [*meeting.gone_lines(gone), *lines]
        # The first order comes after the table, which takes its time.
        more = apart_s(len(self._nodes)) if self._round == 1 else 0.0
        yield lambda: not self._awaited, self._clock() + task.timeout_s + self._slack_s + more
        # An eval that hangs is ended by its node, which says so: who is silent again does not listen, and is waited for
        # no more. Else every round would last as long as it can.
        for node in list(self._awaited):
            if node in self._silent:
                self.lose(node, "it gave no answer in two meetings")
            self._silent.add(node)

    def _judge(self, task: Task, found: Sequence[Meeting], scheduled: int, together: str = "") -> None:
        """Make a record for every node out of the meetings of pairs; `together`: why that of all nodes was bad."""
        end = self._clock() + _JUDGING_S
        limit, bad = localise.bad_meetings(found, task.better, task.effect, scheduled)
        best = [] if bad else list(localise.bests(found[:scheduled], task.better).values())
        if (groups := localise.two_groups(best, task.effect)) is not None:
            sides = " and ".join(f"{len(one)} nodes near {median(one):.4g} {task.unit}".rstrip() for one in groups)
            self._notes.append(f"{task.name}: by their best meetings there are two groups, {sides}: no node is named")
        try:
            faults, notes = localise.explain(found, limit, bad, lambda: self._clock() >= end, self._leaf)
        except VetError as error:
            faults, notes = [], [f"no node is named: {error.message}"]
        named = {fault.node: fault for fault in faults}
        self._notes += [f"{task.name}: {note}" for note in notes]
        if together and not named:
            self._notes.append(f"{task.name}: all nodes together are bad, and pairs name nobody: {together}")
        others = _values(found, named)
        wrong = _by_node([one for one in bad if named.keys().isdisjoint(one.pair)])
        worst = min if task.better == "higher" else max
        for node in self._alive():
            own, worse = others.get(node, []), wrong.get(node, [])
            value = worst((one for one in own if one is not None), default=None)
            verdict = Verdict(PASS, "", "worst meeting", value, limit, task.unit)
            if node in named:
                fault = named[node]
                verdict = Verdict(
                    FAIL, fault.reason, "median of its meetings", fault.value, fault.limit, task.unit, whose=NODE
                )
            elif not own:
                verdict = Verdict(INCONCLUSIVE, "it met no other good node")
            elif len(worse) * 2 > len(own):
                why = next((one.reason for one in worse if one.reason), "it is slower than others")
                verdict = Verdict(
                    INCONCLUSIVE, f"bad with {_partners(node, worse)}, and who is at fault is open: {why}"
                )
            elif together and not named:
                verdict = Verdict(INCONCLUSIVE, f"bad with all nodes together, and who is at fault is open: {together}")
            self._records.append(records.record(node, task.name, task.kind, verdict, 0.0))

    def _all(self, task: Task, verdict: Verdict) -> None:
        for node in self._alive():
            self._records.append(records.record(node, task.name, task.kind, verdict, 0.0))


def _values(meetings: Sequence[Meeting], named: Mapping[str, object]) -> dict[str, list[float | None]]:
    """Return, by node, the values of those of its meetings whose other side is not named."""
    found: defaultdict[str, list[float | None]] = defaultdict(list)
    for (one, other), value, _, _ in meetings:
        if other not in named:
            found[one].append(value)
        if one not in named:
            found[other].append(value)
    return found


def _by_node(meetings: Sequence[Meeting]) -> dict[str, list[Meeting]]:
    """Return the meetings of each node."""
    found: defaultdict[str, list[Meeting]] = defaultdict(list)
    for one in meetings:
        for node in one.pair:
            found[node].append(one)
    return found


def _meeting(members: Sequence[str], own: Sequence[Record | None]) -> Meeting:
    pair = members if isinstance(members, tuple) else (members[0], members[1])
    if len(own) == 1 and own[0] is not None:  # most are of this kind
        one = own[0]
        return Meeting(pair, one.value, one.outcome != PASS, one.reason)
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
