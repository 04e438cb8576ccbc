"""Prints how rules do on made fleets: `python -m tests.scale.fleets [fleet|fleet2] [SEEDS] [DAYS]`, as fleet 1-20 365.

Of the generator `fleet` rules may be tuned; `fleet2` is kept for acceptance.

named      a rule that drains has concluded so of the node
in time    of the lemons whose failures left a word three times, how many were named within 7 days of the third
ideal      what a detector could do at best at this precision that knows of every failure, silent ones too, and the
           rates: it can only count failures, since that is all in which a lemon differs
"""

from __future__ import annotations

import importlib
import importlib.resources
import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import mean

from piolet.central.conclusions import DRAIN, OPEN, REVET, UNFIT
from piolet.central.rules import trust
from piolet.central.rules.engine import Engine
from piolet.central.rules.language import Rule, parse
from piolet.events.envelope import USER, Event

from tests.simulators.fleet import DAY, HOUR, START, Fleet, Truth

PRECISION, SPANS = 0.95, (7, 28, 90, 180, 365)
SILENT = ("silent", "quiet")


def catalogue(missing: str = "60d") -> tuple[Rule, ...]:
    """Return our rules; the made fleets' heart beats every few days, so a silence is a long one."""
    text = importlib.resources.files("piolet.central.rules").joinpath("catalogue.toml").read_text()
    return parse("catalogue.toml", text.replace('missing = "30min"', f'missing = "{missing}"'))


@dataclass
class Run:
    """What rules made of one fleet.

    named     node -> days until a rule would drain it
    asked     node -> days until a re-vet was asked for
    innocent  (rule, node) of conclusions that a node is unfit which had no failure before
    users     conclusions that a node is unfit that rest on a user's doing
    third     lemon -> days until its third failure that leaves a word
    """

    lemons: set[str]
    named: dict[str, float] = field(default_factory=dict)
    asked: dict[str, float] = field(default_factory=dict)
    innocent: list[tuple[str, str]] = field(default_factory=list)
    users: int = 0
    third: dict[str, float] = field(default_factory=dict)

    def judged(self, days: float) -> tuple[int, int]:
        """Return how many nodes were named by then, and how many of these are lemons."""
        named = {node for node, when in self.named.items() if when <= days}
        return len(named), len(named & self.lemons)

    def in_time(self) -> tuple[int, int]:
        """Return how many lemons were named within 7 days of their third failure, and how many had one."""
        late = [self.named.get(node, math.inf) - when for node, when in self.third.items()]
        return sum(one <= 7 for one in late), len(late)


def judge(events: Iterable[tuple[float, Event]], truth: Truth, rules: tuple[Rule, ...], days: float) -> Run:
    """Return what rules make of a fleet."""
    run, engine = Run(truth.lemons), Engine(rules)
    failed: dict[str, list[float]] = {}
    for time, node, what in sorted(truth.failures):
        before = failed.setdefault(node, [])
        if what not in SILENT and (not before or time - before[-1] > 12 * HOUR):
            before.append(time)
            if len(before) == 3 and node in truth.lemons and time < START + (days - 7) * DAY:
                run.third[node] = (time - START) / DAY
    first = {node: min(times) for node, times in failed.items() if times}
    whose = {}
    for received, event in events:
        if trust.doer(event) == USER:
            whose[event.key] = True
        for one in engine.take(event, received):
            if one.state != OPEN:
                continue
            when = (one.time - START) / DAY
            if one.action == DRAIN:
                run.named.setdefault(one.node, when)
            if one.action == REVET:
                run.asked.setdefault(one.node, when)
            if one.action in UNFIT and one.rule != "silent":
                run.users += any(key in whose for key in one.records)
                if first.get(one.node, math.inf) > one.time + HOUR:
                    run.innocent.append((one.rule, one.node))
    return run


def ideal(fleet: Fleet, days: float) -> tuple[int, float, float]:
    """Return the least count of failures at which precision is PRECISION, and recall and precision expected then.

    Counts of a node are Poisson's with rate * hours in the mean, of a lemon `factor` times that.
    """
    lemons = fleet.nodes * fleet.lemons
    for least in range(1, 50):
        found = lemons * _at_least(least, fleet.rate * fleet.factor * days * 24)
        wrong = (fleet.nodes - lemons) * _at_least(least, fleet.rate * days * 24)
        if found / (found + wrong) >= PRECISION:
            return least, found / lemons, found / (found + wrong)
    return 50, 0.0, 1.0


def _at_least(least: int, mean_count: float) -> float:
    return 1 - sum(math.exp(-mean_count) * mean_count**k / math.factorial(k) for k in range(least))


def main(words: list[str]) -> int:
    """Print a table."""
    made = words[0] if words else "fleet"
    first, _, last = (words[1] if len(words) > 1 else "1-20").partition("-")
    days = float(words[2]) if len(words) > 2 else 365.0
    fleet = Fleet(days=days, heartbeat_h=100.0)
    simulate = importlib.import_module(f"tests.simulators.{made}").simulate
    rules, runs = catalogue(), []
    for seed in range(int(first), int(last or first) + 1):
        events, truth = simulate(seed, fleet)
        run = judge(events, truth, rules, days)
        runs.append(run)
        named, right = run.judged(days)
        there = f"{len(events)} records, {len(truth.failures)} failures, {len(truth.broken)} broken jobs"
        print(f"seed {seed}: {there}; named {named}, lemons among them {right} of {len(run.lemons)}; "
              f"in time {run.in_time()[0]} of {run.in_time()[1]}; innocent {run.innocent}", flush=True)  # fmt: skip
    print(f"\n| days | named | lemons | precision | recall | recall of the ideal at precision {PRECISION} |")
    print("|---|---|---|---|---|---|")
    for span in (one for one in SPANS if one <= days):
        named, right = (sum(run.judged(span)[i] for run in runs) for i in (0, 1))
        lemons = sum(len(run.lemons) for run in runs)
        least, recall, _ = ideal(fleet, span)
        precision = f"{right / named:.3f}" if named else "-"
        print(f"| {span} | {named} | {right} | {precision} | {right / lemons:.3f} | {recall:.4f} ({least} failures) |")
    in_time, third = (sum(run.in_time()[i] for run in runs) for i in (0, 1))
    asked = sum(len(run.asked) for run in runs)
    asked_lemons = sum(len(run.asked.keys() & run.lemons) for run in runs)
    print(f"\nlemons named within 7 days of their third failure: {in_time} of {third} ({in_time / max(1, third):.3f})")
    print(f"re-vets asked for: {asked} nodes, {asked_lemons} of them lemons; a fleet and year: "
          f"{mean(len(run.asked) for run in runs):.1f}")  # fmt: skip
    print(f"nodes concluded unfit without a failure before: {sum(len(run.innocent) for run in runs)}")
    print(f"conclusions that a node is unfit which rest on a user's doing: {sum(run.users for run in runs)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
