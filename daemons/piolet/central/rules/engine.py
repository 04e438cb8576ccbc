"""Judges events by rules as they come.

What comes out depends on the events, on their order of arrival, on when they arrived and on the rules, and on nothing
else: replaying the store in its order gives the same conclusions, byte for byte. An event counts at its own time,
corrected by what is known of its node's clock. Memory is bounded for each node, and an event costs the same however
many came before.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

from piolet.central.conclusions import CLOSED, OPEN, REVET, Conclusion, Key, case_of
from piolet.central.rules import components, language, trust
from piolet.central.rules.inservice import InService
from piolet.central.rules.language import Rule
from piolet.central.rules.revets import Revets
from piolet.central.rules.tracks import Track
from piolet.central.rules.words import sentence
from piolet.events.envelope import USER, Event
from piolet.events.kinds import KINDS

TRACKS_MAX = 64
"""Of one rule on one node: subjects that are counted apart; the one that was longest without an event goes."""
_GROUPS_MAX, _GROUP_MAX = 20_000, 64
_SILENCE = 120.0
"""Seconds without any record after which the central service counts as having been away."""
_RECOVERY = {"site.repair": language.REPAIR, "site.revet": language.REVETTED, "node.start": language.BOOT}
_DOWN = ("drain", "draining", "drained", "down", "fail", "failing")

Place = tuple[str, int, tuple[str, ...]]
Words = list[trust.Evidence]


class Node:
    """What is known of a node."""

    __slots__ = ("asleep", "boot", "cluster", "first", "recovered", "repaired", "service", "tracks")

    def __init__(self, cluster: str, first: float) -> None:
        self.cluster = cluster
        self.first = first
        self.boot: tuple[str, object] | None = None  # of its last boot: the kernel's number of it, and when it was
        self.repaired = float("-inf")
        self.recovered: dict[str, float] = {}
        self.service = InService()
        self.asleep = (float("-inf"), False)  # since when Slurm has it powered down, or up again
        self.tracks: dict[int, dict[tuple[str, ...], Track]] = {}


class Engine:
    """Takes events one by one, in the order in which the store has them.

    troubles   rule -> how often one of its conditions could not be computed
    revets     the budget of re-vets, with what it refused
    open       the numbers of the cases that are open now
    now        when the latest record was taken, in seconds since 1970; -inf before the first
    awake      the same without the times in which nothing at all was taken
    nodes, groups, due, pushed, heard   what is known of nodes; who was struck together; what is to be judged when, and
               how many such there were; when nodes were last heard of, by rule: as piolet.central.rules.state keeps it
    """

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.rules = tuple(rules)
        self.revets = Revets()
        self.troubles: dict[str, int] = {}
        self.open: set[str] = set()
        self._by_kind: dict[str, list[int]] = {}
        for index, rule in enumerate(self.rules):
            for kind in rule.events:
                self._by_kind.setdefault(kind, []).append(index)
        self.nodes: dict[str, Node] = {}
        self.groups: OrderedDict[tuple[Any, ...], set[str]] = OrderedDict()
        self.due: list[tuple[float, int, Place, bool]] = []
        self.pushed = 0
        self.now = self.awake = float("-inf")
        self.heard: dict[int, OrderedDict[str, tuple[float, Key]]] = {
            index: OrderedDict() for index, rule in enumerate(self.rules) if rule.missing
        }

    def take(self, event: Event, received: float | None = None) -> list[Conclusion]:
        """Return what this event concludes, and what has become due since the one before: most often nothing.

        received   when the central service took it, by its clock, as the store has it; None: at the event's own time
        """
        time = event.time - (event.offset or 0.0)
        now = time if received is None else received
        out = self._advance(now)
        if event.kind not in KINDS:
            return out
        time = min(time, self.now)  # nothing happens later than it is told
        node = self.nodes.get(event.node)
        if node is None:
            node = self.nodes[event.node] = Node(event.cluster, time)
        elif time < node.first:
            node.first = time
        again = event.kind == "node.start" and not _boots(event, node)  # the daemon, and not the node
        if not again:
            self._recover(event, node, time, out)
        if event.kind == "slurm.node_state" and self._sleeps(event, node, time):
            return out
        key = event.key  # one for all rules that keep it
        for index in self._by_kind.get(event.kind, ()):
            rule = self.rules[index]
            if rule.missing:
                self._hear(index, event, node, time, out)
            elif not again:
                self._count(index, event, key, node, time, out)
        return out

    def wait(self, until: float) -> list[Conclusion]:
        """Return what becomes due until then, if no record comes: for a history that has an end."""
        return self._advance(until)

    def _advance(self, now: float) -> list[Conclusion]:
        """Go on to the time of a record, and judge what has become due until then."""
        out: list[Conclusion] = []
        if now > self.now:
            passed = now - self.now
            self.awake = now if passed == float("inf") else self.awake + min(passed, _SILENCE)
            self.now = now
        for index, heard in self.heard.items():
            limit = self.awake - self.rules[index].missing
            while heard and next(iter(heard.values()))[0] < limit:
                name, (_, key) = heard.popitem(last=False)
                self._miss(index, name, key, out)
        while self.due and self.due[0][0] <= self.now:
            _, _, place, quiet = heapq.heappop(self.due)
            track = self.nodes[place[0]].tracks[place[1]].get(place[2])
            if track is not None and quiet:
                self._quiet(place, track, out)
            elif track is not None and track.waits is not None:
                at, track.waits = track.waits, None
                self._judge(place, track, at, out)
                due = track.unsettled(self.rules[place[1]], self.now)
                if due is not None:
                    track.waits = at
                    self._push(due, place)
        return out

    def _push(self, due: float, place: Place, quiet: bool = False) -> None:
        self.pushed += 1
        heapq.heappush(self.due, (due, self.pushed, place, quiet))

    def _added(self, place: Place, track: Track, time: float, out: list[Conclusion]) -> None:
        """Judge a track that has a new burst, now or when it is settled."""
        rule = self.rules[place[1]]
        if not rule.settle:
            self._judge(place, track, time, out)
        elif track.waits is None:
            track.waits = time
            self._push(self.now + rule.settle, place)
        else:
            track.waits = min(track.waits, time)

    # What is counted.

    def _count(self, index: int, event: Event, key: Key, node: Node, time: float, out: list[Conclusion]) -> None:
        rule = self.rules[index]
        if rule.where is not None:
            values = {name: getattr(event, name) if name in language.FIELDS else event.body.get(name)
                      for name in rule.where.names}  # fmt: skip
            holds = rule.where.holds(values)
            if holds is None:
                self.troubles[rule.name] = self.troubles.get(rule.name, 0) + 1
            if not holds:
                return
        parts = tuple(_part(event, part) for part in rule.per)
        if "" in parts:
            return
        word = trust.evidence(rule.then, event, key, time, self.now)
        if word is None:
            return
        if rule.alone:
            word = word._replace(group=self._group(index, rule, event, word))
        if rule.together and not word.users:
            word = word._replace(pair=self._meanwhile((index, event.kind, ""), rule.together, word.time, event.node))
        track = self._track(node, index, parts)
        if track.add(word, rule):
            self._added((event.node, index, parts), track, time, out)

    def _track(self, node: Node, index: int, parts: tuple[str, ...]) -> Track:
        tracks = node.tracks.setdefault(index, {})
        track = tracks.get(parts)
        if track is None:
            track = tracks[parts] = Track()
            if len(tracks) > TRACKS_MAX:
                closed = (parts for parts, one in tracks.items() if one.case is None)
                gone = tracks.pop(next(closed, next(iter(tracks))))
                if gone.case is not None:
                    self.open.discard(gone.case[0])
        elif len(tracks) > 1:
            tracks[parts] = tracks.pop(parts)  # the last one with an event stands last
        return track

    def _group(self, index: int, rule: Rule, event: Event, word: trust.Evidence) -> set[str]:
        step = components.step_of(event)
        if step is not None and event.source == USER:
            return self._together((index, *step), event.node)
        # The kernel names a component of a heterogeneous job, and one of its processes: so what programs of one user
        # bring about on several nodes, in whichever job, is told by the time.
        whose = (event.uid,) if word.users and event.uid is not None else ()
        return self._meanwhile((index, event.kind, *whose), rule.burst, word.time, event.node)

    def _meanwhile(self, of: tuple[Any, ...], seconds: float, time: float, name: str) -> set[str]:
        """Return the nodes that are struck in so many seconds, or less than half as many before or after these."""
        width = max(60.0, seconds)
        cell, within = divmod(time, width)
        self._together((*of, int(cell - 1 if within < width / 2 else cell + 1)), name)
        return self._together((*of, int(cell)), name)

    def _together(self, of: tuple[Any, ...], name: str) -> set[str]:
        group = self.groups.get(of)
        if group is None:
            group = self.groups[of] = set()
            if len(self.groups) > _GROUPS_MAX:
                self.groups.popitem(last=False)
        if len(group) < _GROUP_MAX:
            group.add(name)
        return group

    def _sleeps(self, event: Event, node: Node, time: float) -> bool:
        """Return whether Slurm says that a node saves power, or that one that does is down: it is no fault of it."""
        state = str(event.body.get("state", "")).lower()
        node.service.told(time, state)
        if state.startswith("power"):
            if time >= node.asleep[0]:
                node.asleep = (time, True)
            for heard in self.heard.values():
                heard.pop(event.node, None)
            return True
        since, asleep = node.asleep
        if asleep and time >= since and not state.startswith(_DOWN):
            node.asleep = (time, False)
        return asleep and time >= since and state.startswith(_DOWN)

    # What is missing.

    def _hear(self, index: int, event: Event, node: Node, time: float, out: list[Conclusion]) -> None:
        since, asleep = node.asleep
        if asleep and time < since:
            return  # what it said before it was powered down has come late
        node.asleep = (since, False)
        heard = self.heard[index]
        heard[event.node] = (self.awake, event.key)
        heard.move_to_end(event.node)
        if language.HEARD in self.rules[index].recovery:
            for parts, track in node.tracks.get(index, {}).items():
                self._close((event.node, index, parts), track, self.now, "it was heard again", (event.key,), out)

    def _miss(self, index: int, name: str, key: Key, out: list[Conclusion]) -> None:
        """Count that a node is silent. Its group is those that fell silent in the same minutes."""
        rule, node = self.rules[index], self.nodes[name]
        at = self.now
        group = self._meanwhile((index,), rule.burst, at, name) if rule.alone else trust.NOBODY
        track = self._track(node, index, ())
        if track.add(trust.Evidence(at, at, key, False, None, None, "", group, trust.NOBODY), rule):
            self._added((name, index, ()), track, at, out)

    # What is concluded.

    def _floor(self, rule: Rule, node: Node, track: Track) -> float:
        if rule.window == language.LIFETIME:
            return track.floor
        return max(track.floor, *(node.recovered.get(word, float("-inf")) for word in rule.recovery))

    def _judge(self, place: Place, track: Track, at: float, out: list[Conclusion]) -> None:
        if track.case is not None:
            return
        rule, node = self.rules[place[1]], self.nodes[place[0]]
        floor = self._floor(rule, node, track)
        for moment in (at, *track.later(at, min(rule.window, 1e9))):
            counted = track.counted(rule, moment, floor, self.now)
            if counted and self._holds(rule, node, track, counted, moment, floor):
                self._open(place, track, counted, moment, floor, out)
                return

    def _values(self, rule: Rule, node: Node, track: Track, counted: Words, at: float, floor: float) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name in rule.when.names:
            if name == "count":
                values[name] = len(counted)
            elif name == "episodes":
                values[name] = track.episodes(counted, rule.apart, node.service.worked)
            elif name == "users":
                values[name] = len({one.uid for one in counted if one.uid is not None})
            elif name == "jobs":
                values[name] = len({one.job for one in counted if one.job is not None})
            elif name == "subjects":
                values[name] = len({one.subject for one in counted if one.subject})
            elif name == "lifetime":
                values[name] = track.total
            elif name == "since_repair":
                values[name] = sum(one.time > node.repaired for one in counted)
            elif name == "worked":
                begin = max(at - rule.window, floor, node.first)
                values[name] = round(node.service.worked(begin, at) / 3600, 3)
            elif name == "age":
                values[name] = round((at - node.first) / 3600, 3)
            else:
                before = [one.time for one in track.bursts if one.time < at]
                values[name] = round((at - before[-1]) / 3600, 3) if before else None
        return values

    def _holds(self, rule: Rule, node: Node, track: Track, counted: Words, at: float, floor: float) -> bool:
        holds = rule.when.holds(self._values(rule, node, track, counted, at, floor))
        if holds is None:
            self.troubles[rule.name] = self.troubles.get(rule.name, 0) + 1
        return bool(holds)

    def _open(self, place: Place, track: Track, counted: Words, at: float, floor: float, out: list[Conclusion]) -> None:
        name, index, parts = place
        rule, node = self.rules[index], self.nodes[name]
        if rule.then == REVET:
            users = sorted({one.uid for one in counted if one.uid is not None})
            if not self.revets.allow(name, any(one.users for one in counted), users, len(self.nodes), self.now):
                return
        keys = tuple(one.key for one in counted)
        where = "" if not parts else " ".join(parts)
        case = case_of(rule.name, node.cluster, name, where, keys[0])
        track.case = (case, at)
        self.open.add(case)
        known = self._values(rule, node, track, counted, at, floor)
        values = {key: value for key, value in known.items() if value is not None}
        words = sentence(rule, name, where, counted, values)
        out.append(Conclusion(case, rule.name, rule.digest, node.cluster, name, where, round(at, 3), OPEN, rule.then,
                              words, keys, values))  # fmt: skip
        if rule.quiet is not None:
            self._push(at + rule.quiet, place, quiet=True)

    def _quiet(self, place: Place, track: Track, out: list[Conclusion]) -> None:
        rule = self.rules[place[1]]
        if rule.quiet is None or track.case is None:
            return
        last = max((one.time for one in track.bursts), default=track.case[1])
        end = max(last, track.case[1]) + rule.quiet
        if end <= self.now:
            self._close(place, track, end, "nothing more was seen", (), out)
        else:
            self._push(end, place, quiet=True)

    def _close(
        self, place: Place, track: Track, at: float, why: str, keys: tuple[Key, ...], out: list[Conclusion]
    ) -> None:
        if track.case is None or at < track.case[1]:
            return
        name, index, parts = place
        rule = self.rules[index]
        case, _ = track.case
        track.case = None
        self.open.discard(case)
        track.floor = max(track.floor, at)
        words = f"{name}: {rule.about}: {why}"
        out.append(Conclusion(case, rule.name, rule.digest, self.nodes[name].cluster, name, " ".join(parts),
                              round(at, 3), CLOSED, rule.then, words, keys, {}))  # fmt: skip

    def _recover(self, event: Event, node: Node, time: float, out: list[Conclusion]) -> None:
        word = _RECOVERY.get(event.kind)
        body = event.body
        why = event.kind
        if event.kind == "site.revet" and body.get("outcome") != "good":
            return
        if event.kind == "slurm.node_state" and str(body.get("state", "")).lower() == "resume":
            word, why = language.RESUME, "it was resumed"
        if event.kind == "site.note" and body.get("case"):
            word, why = language.PERSON, "somebody has looked at it"
        if word is None or event.source == USER:
            return
        if word == language.REPAIR:
            node.repaired, why = max(node.repaired, time), "it was repaired"
        if word != language.PERSON:
            node.recovered[word] = max(node.recovered.get(word, float("-inf")), time)
        why = {language.REVETTED: "it was vetted again, and is good", language.BOOT: "it was booted"}.get(word, why)
        for index, tracks in node.tracks.items():
            if word not in self.rules[index].recovery:
                continue
            for parts, track in tracks.items():
                if track.case is not None and (word != language.PERSON or body["case"] == track.case[0]):
                    self._close((event.node, index, parts), track, time, why, (event.key,), out)


def _boots(event: Event, node: Node) -> bool:
    """Return whether a start of a node's daemon is the first one since a boot, as far as it says of which."""
    boot = (event.boot, event.body.get("booted"))
    before, node.boot = node.boot, boot
    if before is None or boot == ("", None):
        return True
    return boot[0] != before[0] if boot[0] and before[0] else boot[1] != before[1]


def _part(event: Event, name: str) -> str:
    """Return what an event has of a rule's `per`; of a GPU whose UUID is not known the subject is its address."""
    if name != "subject":
        return str(event.body.get(name, ""))[:256]
    address = event.body.get("pci")
    return event.subject or (f"pci:{address}"[:256] if address else "")
