"""What a vetting comes to: which nodes are good, which are left out and why. Pure functions over records.

Nothing fails open: a node that told nothing of an eval is inconclusive there, and a plan of which nothing was
judged has no good node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from statistics import median

from piolet.api import EITHER, FAIL, INCONCLUSIVE, NODE, PASS, USER, Verdict
from piolet.base import texts
from piolet.vet import gpucount, localise, whose
from piolet.vet.runner import records
from piolet.vet.runner.plan import ABORT, WARN, Plan, Task
from piolet.vet.runner.records import Record

GOOD, WARNED, BAD = "good", "warned", "bad"
FIRST_RUNS = 20
"""So many runs of a node are its long baseline, once there are twice as many."""
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
    futile    the first reason for which other nodes would be no better, with whose problem that is, or ''
    """

    state: Mapping[str, str]
    reasons: Mapping[str, Sequence[str]]
    records: Sequence[Record]
    abort: str = ""
    notes: Sequence[str] = field(default_factory=tuple)
    futile: str = ""

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


def unjudged(tasks: Sequence[Task], why: Mapping[str, str], whose: str = EITHER) -> list[Record]:
    """Return records of `tasks` that nobody judged on the nodes in `why`, with the reason: the node may be well."""
    return [
        records.record(node, task.name, task.kind, Verdict(INCONCLUSIVE, reason, whose=whose), 0.0)
        for node, reason in why.items()
        for task in tasks
    ]


def against_peers(plan: Plan, found: Sequence[Record]) -> list[Record]:
    """Return the records with those made 'fail' that differ too much from their peers.

    How they are compared says the class, as it was loaded on the nodes; where none was, as the protocol's was.
    """
    changed = {}
    by_eval: dict[str, list[Record]] = {}
    for record in found:
        by_eval.setdefault(record.eval, []).append(record)
    for task in plan.tasks:
        own = by_eval.get(task.name, [])
        said = {_said(task, record) for record in own if record.outcome == PASS} or {(task.better, task.effect)}
        wanted = task.baseline == "peers" and task.scope == "node"
        if wanted and len(said) > 1:
            changed.update(_unclear(own, "the nodes have several versions of its class, which compare in other ways"))
            continue
        better, effect = min(said)
        if better == "same":
            changed.update(_by_majority(own))
        elif wanted and better not in ("higher", "lower"):
            changed.update(_unclear(own, "it does not say what is better, so it cannot be compared with peers", USER))
        elif wanted:
            changed.update(_by_median(better, effect, own))
    return [changed.get((record.node, record.eval), record) for record in found]


def against_history(
    plan: Plan, found: Sequence[Record], history: Mapping[tuple[str, str], Sequence[float]]
) -> list[Record]:
    """Return the records with those made 'fail' that are worse than the node's own past, by (node, task digest).

    The past is compared as a whole, and its first runs by themselves: what gets worse slowly drags the rest along.
    """
    tasks = {task.name: task for task in plan.tasks}
    result = []
    for record in found:
        task = tasks.get(record.eval)
        past = history.get((record.node, task.digest()), ()) if task else ()
        if past:
            record = record._replace(past=len(past), usual=median(past))
        if task and task.baseline == "history" and record.outcome == PASS:
            record = _by_history(task, record._replace(past=len(past)), past)
        result.append(record)
    return result


def _by_history(task: Task, record: Record, past: Sequence[float]) -> Record:
    better, effect = _said(task, record)
    if record.value is None or better not in ("higher", "lower"):
        return _unclear([record], "it gives no value that can be compared with the node's past")[_key(record)]
    spans = [(past, f"of its last {len(past)} runs")]
    if len(past) >= 2 * FIRST_RUNS:
        spans.append((past[:FIRST_RUNS], f"of its first {FIRST_RUNS} runs"))
    for values, whom in spans:
        limit = localise.peer_limit(values, better, effect)
        if limit is not None and record.outcome == PASS:
            record = beyond(record, limit, better, whom)
    return record


def decide(
    plan: Plan, nodes: Sequence[str], found: Sequence[Record], lost: Mapping[str, str] | None = None,
    history: Mapping[tuple[str, str], Sequence[float]] | None = None, notes: Sequence[str] = (),
    gpus: Mapping[str, int] | None = None,
) -> Decision:  # fmt: skip
    """Return what the records come to; `gpus`: how many Slurm has of each node."""
    judged = against_peers(plan, complete(plan, nodes, found, lost))
    judged = judged if history is None else against_history(plan, judged, history)
    judged = gpucount.against(plan, judged, gpus or {})
    among = whose.meant(judged)
    state = dict.fromkeys(nodes, GOOD)
    reasons: dict[str, list[str]] = {node: [] for node in nodes}
    abort = futile = ""
    tasks = {task.name: task for task in plan.tasks}
    for record in judged:
        effect = effect_of(tasks[record.eval], record)
        if effect == PASS:
            continue
        reasons[record.node].append(f"{record.eval}: {record.reason}")
        if effect == WARN:
            state[record.node] = max(state[record.node], WARNED, key=(GOOD, WARNED, BAD).index)
            continue
        state[record.node] = BAD
        futile = futile or whose.futile(record, among)
        if effect == ABORT and not abort:
            abort = f"'{record.eval}' failed on {record.node}, and the protocol says on_fail: abort: {record.reason}"
    if not plan.tasks:
        state = dict.fromkeys(nodes, BAD)
        abort = abort or "nothing was checked"
    notes = (*notes, *_no_history(plan, judged), *_simulated(judged))
    return Decision(state, reasons, judged, abort, few(notes), futile)


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


def effect_of(task: Task, record: Record) -> str:
    """Return what a record does to its node: PASS, WARN, 'exclude' or ABORT."""
    if record.outcome == PASS:
        return WARN if record.reason else PASS  # it passes, and warns
    if record.outcome == FAIL:
        return task.on_fail
    return {"pass": PASS, "warn": WARN}.get(task.on_inconclusive, task.on_fail)


def _key(record: Record) -> tuple[str, str]:
    return record.node, record.eval


def _said(task: Task, record: Record) -> tuple[str, float]:
    """Return 'better' and 'effect' of what the class says on the record's node, or else of the task."""
    return record.better or task.better, task.effect if record.effect is None else record.effect


def _unclear(own: Sequence[Record], reason: str, whose: str = EITHER) -> dict[tuple[str, str], Record]:
    """Return those that passed as inconclusive: fixed limits were held, only what was asked besides is missing."""
    return {
        _key(record): record._replace(outcome=INCONCLUSIVE, reason=reason, whose=whose)
        for record in own
        if record.outcome == PASS
    }


def _no_history(plan: Plan, judged: Sequence[Record]) -> list[str]:
    """Return a note for each eval that was to be compared with the past of nodes that have too little of it."""
    notes = []
    for task in plan.tasks:
        own = [record for record in judged if record.eval == task.name and record.past is not None]
        new = sum((record.past or 0) < localise.PEERS_MIN for record in own)
        if new and task.baseline in ("history", "site"):
            where = texts.counted(new, "node") if new < len(own) else "any node" if len(own) > 1 else "this node"
            notes.append(
                f"{task.name}: no history yet of {where} (fewer than {localise.PEERS_MIN} runs): nothing was compared"
            )
    return notes


def _simulated(judged: Sequence[Record]) -> list[str]:
    """Return a note on the evals whose figures come from a simulator, which says so."""
    said = {record.eval: record.details["simulated"] for record in judged if record.details.get("simulated")}
    if not said:
        return []
    what = records.clean(str(next(iter(said.values()))), 60)
    return [f"what {', '.join(said)} judged is simulated ({what}): it says nothing of real hardware"]


def _by_median(better: str, effect: float, own: Sequence[Record]) -> dict[tuple[str, str], Record]:
    values = {record.node: record.value for record in own if record.outcome == PASS and record.value is not None}
    limit, outside = localise.outliers(values, better, effect)
    if limit is None:
        few = f"{len(values)} nodes have a value, {localise.PEERS_MIN} are needed to compare them"
        # With fewer nodes the protocol asked for what cannot be; else so many told no value.
        return _unclear(own, few, USER if len(own) < localise.PEERS_MIN else EITHER)
    groups = localise.two_groups(list(values.values()), effect)
    if groups is not None:
        unit = next((record.unit for record in own if record.unit), "")
        sides = " and ".join(f"{len(one)} nodes near {median(one):.4g} {unit}".rstrip() for one in groups)
        return _unclear(own, f"the nodes are two groups, {sides}: their median says nothing")
    changed = _unclear([record for record in own if record.value is None], "it gave no value to compare with peers")
    far = set(outside)
    for record in own:
        if record.node in far:
            changed[_key(record)] = beyond(record, limit, better, "of its peers")
    return changed


def _by_majority(own: Sequence[Record]) -> dict[tuple[str, str], Record]:
    facts = {record.node: record.details.get("same", {}) for record in own if record.outcome == PASS}
    odd = localise.odd_ones({node: same for node, same in facts.items() if isinstance(same, dict)})
    return {
        (record.node, record.eval): record._replace(outcome=FAIL, reason="; ".join(odd[record.node])[:500], whose=NODE)
        for record in own
        if record.node in odd
    }


def beyond(record: Record, limit: float, better: str, whom: str) -> Record:
    """Return the record, made 'fail' if its value is beyond the limit that `whom` sets."""
    assert record.value is not None
    if not (record.value < limit if better == "higher" else record.value > limit):
        return record
    word = "below" if better == "higher" else "above"
    unit = record.unit
    reason = f"{record.measure} {record.value:.4g} {unit} is {word} the limit of {limit:.4g} {unit} {whom}"
    return record._replace(outcome=FAIL, reason=reason, limit=limit, whose=NODE)
