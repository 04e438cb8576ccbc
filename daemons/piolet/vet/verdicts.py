"""What a vetting comes to: which nodes are good, which are left out and why. Pure functions over records.

Nothing fails open: a node that told nothing of an eval is inconclusive there, and a plan of which nothing was
judged has no good node.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from piolet.api import FAIL, INCONCLUSIVE, PASS, Verdict
from piolet.vet import localise
from piolet.vet.runner import records
from piolet.vet.runner.plan import ABORT, WARN, Plan, Task
from piolet.vet.runner.records import Record

GOOD, WARNED, BAD = "good", "warned", "bad"
NOTES_MAX = 20
STATUS_BAD = 3
"""The exit status of what starts no application, for lack of good nodes."""


@dataclass(frozen=True)
class Decision:
    """The end of a vetting.

    state     of every node: good, warned (good, but something was found) or bad
    reasons   by node, 'eval: reason', for what made it bad or warned
    abort     why the application must not start anywhere, or ''
    records   every node's record of every eval, as judged against peers
    """

    state: Mapping[str, str]
    reasons: Mapping[str, Sequence[str]]
    records: Sequence[Record]
    abort: str = ""
    notes: Sequence[str] = field(default_factory=tuple)

    @property
    def good(self) -> list[str]:
        """The nodes that may be used, in the order of the allocation."""
        return [node for node, state in self.state.items() if state != BAD]

    @property
    def bad(self) -> list[str]:
        """The nodes that are left out."""
        return [node for node, state in self.state.items() if state == BAD]


def complete(
    plan: Plan, nodes: Sequence[str], found: Sequence[Record], lost: Mapping[str, str] | None = None
) -> list[Record]:
    """Return one record for every node and eval, in order; what nobody told of is inconclusive.

    The worst of several records of the same eval counts: a node cannot talk itself out of a verdict. Records of
    nodes and evals that were not asked are dropped.
    """
    order = (FAIL, INCONCLUSIVE, PASS)
    table: dict[tuple[str, str], Record] = {}
    for record in found:
        key = (record.node, record.eval)
        old = table.get(key)
        if old is None or order.index(record.outcome) < order.index(old.outcome):
            table[key] = record
    result = []
    for task in plan.tasks:
        for node in nodes:
            told = table.get((node, task.name))
            if told is None:
                reason = (lost or {}).get(node, "the node told nothing of it")
                told = records.record(node, task.name, task.kind, Verdict(INCONCLUSIVE, reason), 0.0)
            result.append(told)
    return result


def unjudged(tasks: Sequence[Task], why: Mapping[str, str]) -> list[Record]:
    """Return records of `tasks` that nobody judged on the nodes in `why`, with the reason: the node may be well."""
    return [
        records.record(node, task.name, task.kind, Verdict(INCONCLUSIVE, reason), 0.0)
        for node, reason in why.items()
        for task in tasks
    ]


def against_peers(plan: Plan, found: Sequence[Record]) -> list[Record]:
    """Return the records with those made 'fail' that differ too much from their peers."""
    changed = {}
    by_eval: dict[str, list[Record]] = {}
    for record in found:
        by_eval.setdefault(record.eval, []).append(record)
    for task in plan.tasks:
        own = by_eval.get(task.name, [])
        if task.better == "same":
            changed.update(_by_majority(own))
        elif task.baseline == "peers" and task.scope == "node":
            changed.update(_by_median(task, own))
    return [changed.get((record.node, record.eval), record) for record in found]


def against_history(
    plan: Plan, found: Sequence[Record], history: Mapping[tuple[str, str], Sequence[float]]
) -> list[Record]:
    """Return the records with those made 'fail' that are worse than the node's own past, by (node, task digest)."""
    digests = {task.name: task for task in plan.tasks if task.baseline == "history"}
    result = []
    for record in found:
        task = digests.get(record.eval)
        past = history.get((record.node, task.digest()), ()) if task else ()
        limit = localise.peer_limit(past, task.better, task.effect) if task else None
        if task and limit is not None and record.outcome == PASS and record.value is not None:
            record = _beyond(record, limit, task.better, f"of its last {len(past)} runs")
        result.append(record)
    return result


def decide(
    plan: Plan, nodes: Sequence[str], found: Sequence[Record], lost: Mapping[str, str] | None = None,
    history: Mapping[tuple[str, str], Sequence[float]] | None = None, notes: Sequence[str] = (),
) -> Decision:  # fmt: skip
    """Return what the records come to."""
    judged = against_history(plan, against_peers(plan, complete(plan, nodes, found, lost)), history or {})
    state = dict.fromkeys(nodes, GOOD)
    reasons: dict[str, list[str]] = {node: [] for node in nodes}
    abort = ""
    tasks = {task.name: task for task in plan.tasks}
    for record in judged:
        effect = _effect(tasks[record.eval], record.outcome)
        if effect == PASS:
            continue
        reasons[record.node].append(f"{record.eval}: {record.reason}")
        if effect == WARN:
            state[record.node] = max(state[record.node], WARNED, key=(GOOD, WARNED, BAD).index)
            continue
        state[record.node] = BAD
        if effect == ABORT and not abort:
            abort = f"'{record.eval}' failed on {record.node}, and the protocol says on_fail: abort: {record.reason}"
    if not plan.tasks:
        state = dict.fromkeys(nodes, BAD)
        abort = abort or "nothing was checked"
    return Decision(state, reasons, judged, abort, few(notes))


def few(notes: Sequence[str]) -> tuple[str, ...]:
    """Return so many notes that a person reads them, and how many there are beside them."""
    if len(notes) <= NOTES_MAX:
        return tuple(notes)
    return (*notes[: NOTES_MAX - 1], f"{len(notes) - NOTES_MAX + 1} more notes are left out")


def choose(decision: Decision, wanted: int) -> list[str]:
    """Return the best `wanted` good nodes, or an empty list: there are too few.

    Nodes without a warning come first; among equals those that stand closest together in the allocation's
    order, which is the order of the network on most machines.
    """
    order = list(decision.state)
    place = {node: at for at, node in enumerate(order)}
    good = decision.good
    if wanted <= 0 or len(good) < wanted:
        return []
    clean = [node for node in good if decision.state[node] == GOOD]
    pool = clean if len(clean) >= wanted else good
    starts = range(len(pool) - wanted + 1)
    must = set() if len(clean) >= wanted else set(clean)

    warned = [0, *accumulate(decision.state[node] != GOOD for node in pool)]

    def cost(start: int) -> tuple[int, int]:
        end = start + wanted
        return warned[end] - warned[start], place[pool[end - 1]] - place[pool[start]]

    best = min(starts, key=cost)
    run = pool[best : best + wanted]
    if must - set(run):  # every clean node is wanted, and the nearest warned ones fill up
        near = [node for node in good if node not in must][: wanted - len(must)]
        run = [node for node in order if node in must or node in near]
    return run


def _effect(task: Task, outcome: str) -> str:
    """Return PASS, WARN, 'exclude' or ABORT."""
    if outcome == PASS:
        return PASS
    if outcome == FAIL:
        return task.on_fail
    return {"pass": PASS, "warn": WARN}.get(task.on_inconclusive, task.on_fail)


def _by_median(task: Task, own: Sequence[Record]) -> dict[tuple[str, str], Record]:
    values = {record.node: record.value for record in own if record.outcome == PASS and record.value is not None}
    limit, beyond = localise.outliers(values, task.better, task.effect)
    if limit is None:
        few = f"{len(values)} nodes have a value, {localise.PEERS_MIN} are needed to compare them"
        # Fixed limits of the same eval were held; only what was asked of the peers is missing.
        return {
            (record.node, record.eval): dataclasses.replace(record, outcome=INCONCLUSIVE, reason=few)
            for record in own
            if record.outcome == PASS
        }
    far = set(beyond)
    return {
        (record.node, record.eval): _beyond(record, limit, task.better, "of its peers")
        for record in own
        if record.node in far
    }


def _by_majority(own: Sequence[Record]) -> dict[tuple[str, str], Record]:
    facts = {record.node: record.details.get("same", {}) for record in own if record.outcome == PASS}
    odd = localise.odd_ones({node: same for node, same in facts.items() if isinstance(same, dict)})
    return {
        (record.node, record.eval): dataclasses.replace(record, outcome=FAIL, reason="; ".join(odd[record.node])[:500])
        for record in own
        if record.node in odd
    }


def _beyond(record: Record, limit: float, better: str, whom: str) -> Record:
    assert record.value is not None
    if not (record.value < limit if better == "higher" else record.value > limit):
        return record
    word = "below" if better == "higher" else "above"
    reason = f"{record.measure} {record.value:.4g} {record.unit} is {word} the limit {limit:.4g} {record.unit} {whom}"
    return dataclasses.replace(record, outcome=FAIL, reason=reason, limit=limit)
