"""What the engine knows, as lines of JSON and back, so that a restart need not judge the whole store again.

Plain data alone: nothing in it is run. One line for each node, so that neither the writer nor the reader has all of it
in memory twice. Nodes that were struck together share one set, before and after.
"""

from __future__ import annotations

import json
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from sys import intern
from typing import Any

from piolet.central.conclusions import Key
from piolet.central.rules.engine import Engine, Node
from piolet.central.rules.language import Rule
from piolet.central.rules.tracks import Track
from piolet.central.rules.trust import NOBODY, Evidence


def lines(engine: Engine) -> Iterator[bytes]:
    """Yield the state: a line of the whole, one of each node, and those of what befell nodes together."""
    groups = _Groups()
    revets = engine.revets
    yield _line({
        "now": engine.now, "awake": engine.awake, "troubles": engine.troubles, "open": sorted(engine.open),
        "pushed": engine.pushed, "due": engine.due,
        "heard": {index: [(name, *one) for name, one in heard.items()] for index, heard in engine.heard.items()},
        "revets": [revets.refused, revets.nodes, list(revets.all),
                   [(uid, list(asked)) for uid, asked in revets.accounts.items()]],
    })  # fmt: skip
    for name, node in engine.nodes.items():
        yield _line({"node": name, "of": _node(node, groups)})
    for of, members in engine.groups.items():
        groups.number(members)
        yield _line({"group": groups.number(members), "key": of})
    for number, members in enumerate(groups.sets):
        yield _line({"set": number, "members": sorted(members)})


def restored(rules: Iterable[Rule], said: Iterable[bytes]) -> Engine:
    """Return an engine of these rules that knows what `lines` said of one with the same. Raises ValueError, TypeError,
    KeyError, IndexError: it is no such state.
    """
    engine, groups, keys = Engine(rules), _Groups(), _Keys()
    each = iter(said)
    whole = json.loads(next(each, b"{}"))
    engine.now, engine.awake, engine.pushed = whole["now"], whole["awake"], whole["pushed"]
    engine.troubles.update(whole["troubles"])
    engine.open.update(whole["open"])
    engine.due += [(due, number, (name, index, tuple(parts)), quiet)
                   for due, number, (name, index, parts), quiet in whole["due"]]  # fmt: skip
    for index, found in whole["heard"].items():
        engine.heard[int(index)].update((name, (awake, keys.of(*key))) for name, awake, key in found)
    revets = engine.revets
    revets.refused, nodes, asked, accounts = whole["revets"]
    revets.nodes.update(nodes)
    revets.all.extend(asked)
    revets.accounts.update((uid, deque(times)) for uid, times in accounts)
    for line in each:
        one = json.loads(line)
        if "node" in one:
            name = intern(one["node"])
            engine.nodes[name] = _node_of(name, one["of"], groups, keys, len(engine.rules))
        elif "group" in one:
            index, *rest = one["key"]
            engine.groups[index, *rest] = groups.of(one["group"])
        else:
            groups.of(one["set"]).update(one["members"])
    return engine


class _Groups:
    """Numbers for sets, and sets for numbers."""

    def __init__(self) -> None:
        self.sets: list[set[str]] = []
        self._numbers: dict[int, int] = {}

    def number(self, members: set[str]) -> int:
        number = self._numbers.setdefault(id(members), len(self.sets))
        if number == len(self.sets):
            self.sets.append(members)
        return number

    def of(self, number: int) -> set[str]:
        while len(self.sets) <= number:
            self.sets.append(set())
        return self.sets[number]


class _Keys:
    """Keys of records, one object for all who keep one."""

    def __init__(self) -> None:
        self._known: dict[Key, Key] = {}

    def of(self, node: str, epoch: str, seq: int) -> Key:
        key = (intern(node), intern(epoch), seq)
        return self._known.setdefault(key, key)


def _line(said: Any) -> bytes:
    return json.dumps(said, separators=(",", ":")).encode("ascii") + b"\n"


def _node(node: Node, groups: _Groups) -> list[Any]:
    tracks = [
        (index, parts, track.total, track.floor, track.case, track.waits, [_said(one, groups) for one in track.bursts])
        for index, found in node.tracks.items()
        for parts, track in found.items()
    ]
    changes = None if node.service.changes is None else node.service.changes.tolist()
    return [node.cluster, node.first, node.boot, node.repaired, node.recovered, node.asleep, changes, tracks]


def _said(one: Evidence, groups: _Groups) -> tuple[Any, ...]:
    sets = [None if members is NOBODY else groups.number(members) for members in (one.group, one.pair)]
    return one.time, one.arrived, one.key[1], one.key[2], int(one.users), one.uid, one.job, one.subject, *sets


def _node_of(name: str, said: Sequence[Any], groups: _Groups, keys: _Keys, rules: int) -> Node:
    cluster, first, boot, repaired, recovered, asleep, changes, tracks = said
    node = Node(intern(cluster), first)
    node.boot = None if boot is None else tuple(boot)
    node.repaired, node.recovered, node.asleep = repaired, recovered, (asleep[0], asleep[1])
    node.service.changes = None if changes is None else array("d", changes)
    for index, parts, total, floor, case, waits, bursts in tracks:
        if not 0 <= index < rules:
            raise ValueError("a track is of no rule")
        track = Track()
        track.total, track.floor, track.waits = total, floor, waits
        track.case = None if case is None else (case[0], case[1])
        for time, arrived, epoch, seq, users, uid, job, subject, *sets in bursts:
            group, pair = (NOBODY if number is None else groups.of(number) for number in sets)
            key = keys.of(name, epoch, seq)
            track.bursts.append(Evidence(time, arrived, key, bool(users), uid, job, intern(subject), group, pair))
        node.tracks.setdefault(index, {})[tuple(parts)] = track
    return node
