"""Prints how rules do on made fleets: `python -m tests.scale.fleets [FLEET] [SEEDS] [DAYS] [PROCESSES]`.

As `fleet3 3001-3020 1095`.
On seeds 1 to 20 of the generator `fleet` rules may be tuned; `fleet2`, `fleet3` and other seeds are for acceptance.

named      the rule `lemon` has concluded so of the node
drained    any rule that drains has: it may be that a GPU was lost twice, which is no word on its node's nature
looked     people were asked to look at it by the rule `failed-thrice`
in time    of the lemons whose failures left a word in four episodes, how many were named within 7 days of the fourth
ideal      what a detector could do at best at this precision that knows of every failure, silent ones too, and the
           rates, where failures come singly: it can only count them, since that is all in which a lemon differs
[a, b]     Wilson's interval, which the true share is in with 95 in 100
"""

from __future__ import annotations

import importlib
import importlib.resources
import math
import sys
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import repeat
from statistics import mean

from piolet.central.conclusions import DRAIN, OPEN, REVET, UNFIT
from piolet.central.rules import trust
from piolet.central.rules.engine import Engine
from piolet.central.rules.language import Rule, parse
from piolet.events.envelope import USER, Event

from tests.simulators.fleet import DAY, HOUR, START, Fleet, Truth

PRECISION, SPANS = 0.95, (28, 90, 180, 365, 730, 1095)
EPISODES, APART = 4, 21.0  # of the rule `lemon`
SILENT = ("silent", "quiet")


def catalogue(missing: str = "60d") -> tuple[Rule, ...]:
    """Return our rules; the made fleets' heart beats every few days, so a silence is a long one."""
    text = importlib.resources.files("piolet.central.rules").joinpath("catalogue.toml").read_text()
    return parse("catalogue.toml", text.replace('missing = "30min"', f'missing = "{missing}"'))


@dataclass
class Run:
    """What rules made of one fleet.

    named     node -> days until it was named a lemon
    asked     node -> days until a re-vet was asked for
    innocent  (rule, node) of conclusions that a node is unfit which had no failure before
    users     conclusions that a node is unfit that rest on a user's doing
    programs  how many of the innocent had nothing before but a user's program that took them down
    drained   node -> days until any rule would drain it
    shown     lemon -> days until the failure that begins its fourth episode of those that leave a word
    looked    node -> days until people were asked to look
    """

    lemons: set[str]
    named: dict[str, float] = field(default_factory=dict)
    asked: dict[str, float] = field(default_factory=dict)
    innocent: list[tuple[str, str]] = field(default_factory=list)
    users: int = 0
    programs: int = 0
    shown: dict[str, float] = field(default_factory=dict)
    drained: dict[str, float] = field(default_factory=dict)
    looked: dict[str, float] = field(default_factory=dict)

    def judged(self, days: float, which: str = "named") -> tuple[int, int]:
        """Return how many nodes were named, or asked to be looked at, by then, and how many of these are lemons."""
        named = {node for node, when in getattr(self, which).items() if when <= days}
        return len(named), len(named & self.lemons)

    def in_time(self) -> tuple[int, int]:
        """Return how many lemons were named within 7 days of the fourth episode, and how many had four."""
        late = [self.named.get(node, math.inf) - when for node, when in self.shown.items()]
        return sum(one <= 7 for one in late), len(late)


def judge(events: Iterable[tuple[float, Event]], truth: Truth, rules: tuple[Rule, ...], days: float) -> Run:
    """Return what rules make of a fleet."""
    run, engine = Run(truth.lemons), Engine(rules)
    failed: dict[str, list[float]] = {}
    first: dict[str, float] = {}
    befell: list[tuple[float, str, str]] = getattr(truth, "shared", [])
    for time, node, what in sorted(truth.failures):
        first.setdefault(node, time)
        if what not in SILENT:
            failed.setdefault(node, []).append(time)
    for node in truth.lemons & failed.keys():
        times = failed[node]
        begins = [one for i, one in enumerate(times) if not i or one - times[i - 1] >= APART * DAY]
        if len(begins) >= EPISODES and begins[EPISODES - 1] < START + (days - 7) * DAY:
            run.shown[node] = (begins[EPISODES - 1] - START) / DAY
    whose = {}
    for received, event in events:
        if trust.doer(event) == USER:
            whose[event.key] = True
        for one in engine.take(event, received):
            if one.state != OPEN:
                continue
            when = (one.time - START) / DAY
            if one.rule == "lemon":
                run.named.setdefault(one.node, when)
            if one.action == DRAIN:
                run.drained.setdefault(one.node, when)
            if one.rule == "failed-thrice":
                run.looked.setdefault(one.node, when)
            if one.action == REVET:
                run.asked.setdefault(one.node, when)
            if one.action in UNFIT and one.rule != "silent":
                run.users += any(key in whose for key in one.records)
                if first.get(one.node, math.inf) > one.time + HOUR:
                    run.innocent.append((one.rule, one.node))
                    shared = {what for time, node, what in befell if node == one.node and time <= one.time}
                    run.programs += shared == {"program"}
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


def soonest(fleet: Fleet, days: float = 7.0) -> tuple[float, float]:
    """Return at most which recall any detector has within so many days: of a lemon's first failure, at a precision of
    PRECISION; and of the beginning, at whatever precision.

    After a first failure, a node's odds of being a lemon are those of the failures in all; each further one multiplies
    them by `factor`. The detector names all who fail at least twice more, and as many of those who fail once more as
    the precision allows; it knows the rates and of every failure, and failures come singly.
    """
    often, seldom = fleet.rate * fleet.factor * days * 24, fleet.rate * days * 24
    good = (1 - fleet.lemons) / (fleet.lemons * fleet.factor)  # first failures of good nodes for one of a lemon
    right, wrong = _at_least(2, often), good * _at_least(2, seldom)
    once, wrongly = often * math.exp(-often), good * seldom * math.exp(-seldom)
    share = (right - PRECISION * (right + wrong)) / (PRECISION * (once + wrongly) - once)
    return right + once * min(1.0, max(0.0, share)), _at_least(1, often)


def interval(right: int, many: int) -> str:
    """Return a share with its interval, in which the true one is with 95 in 100 (Wilson 1927)."""
    if not many:
        return "-"
    share, z = right / many, 1.96
    middle = (share + z * z / (2 * many)) / (1 + z * z / many)
    half = z * math.sqrt(share * (1 - share) / many + z * z / (4 * many * many)) / (1 + z * z / many)
    return f"{share:.3f} [{max(0.0, middle - half):.3f}, {min(1.0, middle + half):.3f}]"


def _at_least(least: int, mean_count: float) -> float:
    return 1 - sum(math.exp(-mean_count) * mean_count**k / math.factorial(k) for k in range(least))


def _run(made: str, seed: int, fleet: Fleet, days: float) -> tuple[Run, str]:
    events, truth = importlib.import_module(f"tests.simulators.{made}").simulate(seed, fleet)
    there = f"{len(events)} records, {len(truth.failures)} failures, {len(truth.broken)} broken jobs"
    return judge(events, truth, catalogue(), days), there


def main(words: list[str]) -> int:
    """Print a table."""
    made = words[0] if words else "fleet"
    first, _, last = (words[1] if len(words) > 1 else "1-20").partition("-")
    days = float(words[2]) if len(words) > 2 else 365.0
    fleet, runs = Fleet(days=days, heartbeat_h=400.0), []
    seeds = range(int(first), int(last or first) + 1)
    with ProcessPoolExecutor(int(words[3]) if len(words) > 3 else 1) as pool:
        for seed, (run, there) in zip(
            seeds, pool.map(_run, repeat(made), seeds, repeat(fleet), repeat(days)), strict=True
        ):
            runs.append(run)
            named, right = run.judged(days)
            print(f"seed {seed}: {there}; named {named}, lemons among them {right} of {len(run.lemons)}; "
                  f"in time {run.in_time()[0]} of {run.in_time()[1]}", flush=True)  # fmt: skip
    lemons = sum(len(run.lemons) for run in runs)
    for which in ("named", "drained", "looked"):
        print(f"\n{which}; ideal: its recall at a precision of {PRECISION}\n")
        print("| days | nodes | of them lemons | precision | recall | ideal |\n|---|---|---|---|---|---|")
        for span in (one for one in SPANS if one <= days):
            named, right = (sum(run.judged(span, which)[i] for run in runs) for i in (0, 1))
            ideally = ideal(fleet, span)[1]
            print(
                f"| {span} | {named} | {right} | {interval(right, named)} | {interval(right, lemons)} | {ideally:.3f} |"
            )
    in_time, shown = (sum(run.in_time()[i] for run in runs) for i in (0, 1))
    asked = sum(len(run.asked) for run in runs)
    asked_lemons = sum(len(run.asked.keys() & run.lemons) for run in runs)
    print(f"\nlemons named within 7 days of their fourth episode's first word: {in_time} of {shown}, "
          f"{interval(in_time, shown)}")  # fmt: skip
    print(f"re-vets asked for: {asked} nodes, {asked_lemons} of them lemons; a fleet and year: "
          f"{mean(len(run.asked) for run in runs) * 365 / days:.1f}")  # fmt: skip
    innocent = Counter(rule for run in runs for rule, _ in run.innocent)
    print(f"conclusions that a node is unfit which had no failure of its own before: {innocent.total()}, "
          + ", ".join(f"{rule} {many}" for rule, many in innocent.most_common()))  # fmt: skip
    print(f"of these after nothing but a user's program: {sum(run.programs for run in runs)}")
    print(f"conclusions that a node is unfit which rest on a user's doing: {sum(run.users for run in runs)}")
    soon, ever = soonest(fleet)
    print(f"any detector, within 7 days of a lemon's first failure, precision {PRECISION}: recall {soon:.4f} at most; "
          f"within 7 days of the beginning, at any precision: {ever:.3f}")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
