"""Replays a history against rules: what they would have concluded, what that would have cost, and what it was good for.

Events are judged in the order in which the service took them, so the conclusions are those of the live service, byte
for byte, where the rules are the same. Pure: where the history comes from is the caller's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from piolet.base.texts import columns
from piolet.central.conclusions import CLOSED, DRAIN, OPEN, Conclusion
from piolet.central.rules import trust
from piolet.central.rules.engine import Engine
from piolet.central.rules.language import Rule
from piolet.events.envelope import FATAL, SITE, USER, Event

ONE_FAILURE_S = 3600.0
"""Signs of failure on a node within so many seconds are one failure."""


@dataclasses.dataclass
class Outcome:
    """What a rule would have come to.

    cases, nodes   how many cases it opened, on how many nodes
    hours          node-hours out of service: of rules that drain, from a case's opening to its end, or to the
                   history's; at most, as a node that is drained is repaired sooner
    prevented      failures on a node while it had an open case, the one that opened it not among them
    first          when the first case was opened, None: never
    """

    rule: str
    action: str
    cases: int = 0
    nodes: set[str] = dataclasses.field(default_factory=set)
    hours: float = 0.0
    prevented: int = 0
    first: float | None = None


@dataclasses.dataclass
class Replay:
    """What a history came to.

    outcomes     by rule, in the rules' order
    conclusions  all of them, in order
    events, nodes, failures   how many there were, copies and all; failures as `prevented` counts them
    begin, end   of the history, by the service's clock
    troubles     rule -> how often a condition could not be computed
    refused      re-vets that the budget did not allow
    """

    outcomes: dict[str, Outcome]
    conclusions: list[Conclusion]
    events: int = 0
    nodes: int = 0
    failures: int = 0
    begin: float = 0.0
    end: float = 0.0
    troubles: dict[str, int] = dataclasses.field(default_factory=dict)
    refused: int = 0


def is_failure(event: Event) -> bool:
    """Return whether an event is the word of the kernel, of root or of the site that its node failed."""
    if trust.doer(event) == USER:
        return False
    state = str(event.body.get("state", ""))
    if event.kind == "slurm.job_end":
        nodes = str(event.body.get("nodes", event.node))
        return state == "NODE_FAIL" and not {",", "["} & set(nodes)  # of several nodes, nobody says which one
    if event.kind == "slurm.node_state":
        return state.lower() in ("down", "fail")
    return event.kind == "gpu.lost" or (event.severity == FATAL and event.source != SITE)


def replay(
    rules: Sequence[Rule], history: Iterable[tuple[Event, float | None]], since: float = 0.0, *, over: bool = False
) -> Replay:
    """Return what rules come to on a history: (event, when the service took it) in that order.

    What came before `since` is judged, so that windows and lifetimes are whole, and not reported. Where the history is
    `over`, what waits at its end to be settled is judged; where it goes on, it waits as it does in the live service.
    """
    engine = Engine(rules)
    done = Replay({rule.name: Outcome(rule.name, rule.then) for rule in rules}, [])
    opened: dict[str, dict[str, tuple[str, float]]] = {}  # node -> case -> (rule, when)
    failed: dict[str, float] = {}
    nodes = set()
    for event, received in history:
        for conclusion in engine.take(event, received):
            _note(done, conclusion, opened, since)
        at = min(event.time - (event.offset or 0.0), engine.now)
        done.begin = min(done.begin or at, at)
        done.events += 1
        nodes.add(event.node)
        if at < since or not is_failure(event) or abs(at - failed.get(event.node, float("-inf"))) < ONE_FAILURE_S:
            continue
        failed[event.node] = at
        done.failures += 1
        for rule, when in opened.get(event.node, {}).values():
            done.outcomes[rule].prevented += at > when + ONE_FAILURE_S
    done.end, done.nodes = engine.now, len(nodes)
    if over:
        for conclusion in engine.wait(done.end + max((rule.settle for rule in rules), default=0.0)):
            _note(done, conclusion, opened, since)
    for cases in opened.values():
        for rule, when in cases.values():
            _add_hours(done.outcomes[rule], max(when, since), done.end)
    done.troubles, done.refused = dict(engine.troubles), engine.revets.refused
    return done


def _note(done: Replay, one: Conclusion, opened: dict[str, dict[str, tuple[str, float]]], since: float) -> None:
    outcome = done.outcomes[one.rule]
    if one.state == CLOSED:
        case = opened.get(one.node, {}).pop(one.case, None)
        if case is not None and one.time >= since:
            _add_hours(outcome, max(case[1], since), one.time)
    if one.state == OPEN:
        opened.setdefault(one.node, {})[one.case] = (one.rule, one.time)
    if one.time < since:
        return
    done.conclusions.append(one)
    if one.state == OPEN:
        outcome.cases += 1
        outcome.nodes.add(one.node)
        outcome.first = one.time if outcome.first is None else min(outcome.first, one.time)


def _add_hours(outcome: Outcome, begin: float, end: float) -> None:
    if outcome.action == DRAIN:
        outcome.hours += max(0.0, end - begin) / 3600


def table(done: Replay) -> list[str]:
    """Return the outcomes as lines: a row for each rule that concluded anything, and which did not."""
    rows = [("rule", "would", "cases", "nodes", "node-hours out", "failures after")]
    silent = []
    for one in done.outcomes.values():
        if one.cases:
            hours = f"{one.hours:.0f}" if one.action == DRAIN else "-"
            rows.append((one.rule, one.action, str(one.cases), str(len(one.nodes)), hours, str(one.prevented)))
        else:
            silent.append(one.rule)
    lines = columns(rows, right={2, 3, 4, 5}) if len(rows) > 1 else ["no rule concludes anything"]
    return lines + ([f"nothing from: {', '.join(silent)}"] if silent and len(rows) > 1 else [])
