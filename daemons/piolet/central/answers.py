"""What can be asked of the service, and who may see what.

Staff sees everything. Users see what Slurm would show them: where it hides things (PrivateData, or [central] private),
what is of fewer than three users is left out, but for their own. What the kernel, root or the site said of a node is
nobody's secret.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from piolet.base.errors import EventError
from piolet.central import conclusions, hands
from piolet.central.conclusions import CLOSED, OPEN, REVET, Conclusion
from piolet.central.doors import RefusedError
from piolet.central.ledger import Judge, Ledger
from piolet.central.rules import explain, trust
from piolet.central.rules.language import Rule
from piolet.central.store import wordings
from piolet.central.store.reader import BEAT, Reader
from piolet.events.envelope import USER, Event
from piolet.system.accounts import is_staff

USERS_LEAST = 3
WEEK_S = 7 * 86400.0
SILENT_S = 900.0
_RECORDS_MOST = 1000
_NOTED_S = 30.0
_NAMES = ("name", "id", "node", "case", "request")
"""Parameters that are looked for."""

Parameters = Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Asker:
    """Who asks."""

    uid: int | None
    staff: bool
    private: bool  # whether this asker may not see what is of few users

    def may_see(self, users: set[int | None]) -> bool:
        """Return whether what is of these users may be shown."""
        return not self.private or len(users - {None}) >= USERS_LEAST or users <= {self.uid}


class Answers:
    """Answers questions; `ask` has them by name, and more can be added.

    cancelled   tells whose scancel ended the tasks of an event, or None
    is_gone     tells whether a node is none of the cluster's any more
    """

    def __init__(
        self,
        reader: Reader,
        ledger: Ledger,
        judge: Judge,
        staff: Sequence[str],
        is_private: Callable[[], bool],
        rules: Sequence[Rule] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.reader, self.ledger, self.judge = reader, ledger, judge
        self._staff, self._is_private, self._rules, self._clock = staff, is_private, rules, clock
        self.cancelled: Callable[[Event], int | None] = lambda _: None
        self.is_gone: Callable[[str], bool] = lambda _: False
        self.ask: dict[tuple[str, str], Callable[[Asker, Parameters], dict[str, Any]]] = {
            ("GET", "status"): self._status,
            ("GET", "node"): self._node,
            ("GET", "offenders"): self._offenders,
            ("GET", "case"): self._case,
            ("POST", "note"): self._note,
            ("POST", "ack"): self._ack,
            ("POST", "repaired"): self._repaired,
            ("POST", "revetted"): self._revetted,
        }

    def answer(
        self, uid: int | None, method: str, name: str, parameters: dict[str, str], body: bytes
    ) -> dict[str, Any]:
        """Return the answer to a question of a user. Raises EventError, RefusedError."""
        question = self.ask.get((method, name))
        if question is None:
            raise RefusedError(404, f"nobody knows what {method} {name!r} is", "is the service of an older release?")
        staff = is_staff(uid, self._staff)
        asker = Asker(uid, staff, not staff and self._is_private())
        if method == "POST":
            if not staff:
                raise RefusedError(403, "only staff may do that", "[central] staff says who that is")
            try:
                said = json.loads(body)
            except (ValueError, RecursionError):
                said = None
            if not isinstance(said, dict) or not all(isinstance(one, str) for one in said.values()):
                raise EventError("the request is no object of texts")
            parameters = said
        for name in _NAMES:
            if not parameters.get(name, "").isprintable():  # a data base takes neither NUL nor half a character
                raise EventError(f"{name} is {parameters[name][:60]!r}")
        return question(asker, parameters)

    def _status(self, asker: Asker, _: Parameters) -> dict[str, Any]:
        now = self._clock()
        nodes = self.reader.nodes()
        quiet = {
            node: last for node, last in nodes.items()
            if last is not None and now - last > SILENT_S and not self.judge.sleeps(node)
        }  # fmt: skip
        retired = self._retired(quiet)
        silent = sorted(set(quiet) - set(retired))
        cases = self._open(self._conclusions())
        said: dict[str, Any] = {
            **self.reader.counted(), "nodes": len(nodes), "silent": len(silent),
            "retired": len(retired), "cases": len(cases), "judging": not self.judge.broken,
            "caught_up": self.judge.is_caught_up, "failing": self.ledger.failing,
        }  # fmt: skip
        if asker.staff:
            said |= {"silent_nodes": silent[:_RECORDS_MOST], "retired_nodes": retired[:_RECORDS_MOST]}
            said["broken"] = self.judge.broken
        return said

    def _retired(self, quiet: Mapping[str, float]) -> list[str]:
        """Return which of these nodes nobody waits for: the cluster has them no longer, or staff has acknowledged that
        they are silent since they were last heard.
        """
        rules = [rule.name for rule in self._rules if rule.missing and BEAT in rule.events]
        seen = self.reader.acknowledged(rules) if quiet and rules else {}
        return sorted(node for node, last in quiet.items() if self.is_gone(node) or seen.get(node, last) > last)

    def _node(self, asker: Asker, parameters: Parameters) -> dict[str, Any]:
        node = parameters.get("name", "")
        since = self._clock() - number(parameters, "seconds", WEEK_S)
        found = self.reader.records(node, since, _RECORDS_MOST)
        records = found.events
        cases = self._conclusions(node=node)
        nodes = self.reader.nodes()
        if node not in nodes and not cases:
            raise EventError(f"nothing is known of a node {node!r}", "sinfo -N shows their names")
        users: dict[str, set[int | None]] = {}
        # Where users are hidden, of what the kernel says of their processes no number tells of them either.
        numbered = [one for one in records if one.source == USER or not asker.private or _is_shown(asker, one)]
        for one in numbered:
            told = _is_of_users(one) and (one.source == USER or not asker.private)
            users.setdefault(one.kind, set()).add(one.uid if told else None)
        counted = Counter(one.kind for one in numbered)
        if found.beats:
            counted[BEAT] = found.beats
        said = {
            "node": node,
            "last": nodes.get(node),
            "counts": {
                kind: {"records": count, "users": len(users.get(kind, {None}) - {None})}
                for kind, count in counted.items()
                if (whose := users.get(kind, {None})) == {None} or asker.may_see(whose)
            },
            "cases": [dataclasses.asdict(one) for one in self._shown(asker, cases)],
            "records": [_record(self._joined(_shown_to(asker, one))) for one in records if _is_shown(asker, one)],
            "complete": found.whole,
        }
        if asker.staff:
            said |= {"gaps": self.reader.gaps(node), "notes": self.reader.notes(node=node)}
        return said

    def _offenders(self, asker: Asker, parameters: Parameters) -> dict[str, Any]:
        since = self._clock() - number(parameters, "seconds", 365 * 86400.0)
        cases = self._shown(asker, self._conclusions(since=since))
        by_node: dict[str, list[dict[str, Any]]] = {}
        for one in self._open(cases):
            by_node.setdefault(one.node, []).append(dataclasses.asdict(one))
        nodes = [{"node": node, "cases": found} for node, found in by_node.items()]
        return {"nodes": sorted(nodes, key=lambda one: (-len(one["cases"]), one["node"]))}

    def _case(self, asker: Asker, parameters: Parameters) -> dict[str, Any]:
        case = parameters.get("id", "")
        found = self._conclusions(case=case)
        shown = self._shown(asker, found)
        if not any(one.state == OPEN for one in shown):
            raise EventError(f"there is no case {case!r}", "piolet central offenders lists them")
        records = []
        for node, epoch, seq in shown[0].records:
            record = self.reader.record(node, epoch, seq)
            if record is not None and (_is_shown(asker, record) or asker.staff):
                records.append(self._joined(_shown_to(asker, record)))
        said: dict[str, Any] = {
            "case": [dataclasses.asdict(one) for one in shown], "records": [_record(one) for one in records],
            "lines": explain.case(shown, records, self._rules),
        }  # fmt: skip
        return {**said, "notes": self.reader.notes(case=case)} if asker.staff else said

    def _joined(self, event: Event) -> Event:
        """Return an event with what accounting knows of it."""
        by = self.cancelled(event)
        return event if by is None else dataclasses.replace(event, body={**event.body, "cancelled_by": by})

    def _note(self, asker: Asker, parameters: Parameters) -> dict[str, Any]:
        return self._said(asker, parameters, wordings.NOTE)

    def _ack(self, asker: Asker, parameters: Parameters) -> dict[str, Any]:
        if not parameters.get("case"):
            raise EventError("what is acknowledged is a case")
        noted = self._said(asker, parameters, wordings.ACKNOWLEDGED)
        of = self._conclusions(case=parameters["case"])
        return noted | self._keep(asker, of[0].node, hands.acknowledged, parameters)

    def _repaired(self, asker: Asker, parameters: Parameters) -> dict[str, Any]:
        return self._keep(asker, parameters.get("node", ""), hands.repaired, parameters)

    def _revetted(self, asker: Asker, parameters: Parameters) -> dict[str, Any]:
        node, case = parameters.get("node", ""), parameters.get("request", "")
        if case and not any(one.node == node for one in self._conclusions(case=case)):
            raise EventError(f"node {node!r} has no case {case!r}", "piolet central node NAME lists them")
        return self._keep(asker, node, hands.revetted, parameters)

    def _keep(
        self, asker: Asker, node: str, make: Callable[[str, str, float, Parameters], Event], said: Parameters
    ) -> dict[str, Any]:
        """Keep what staff says as a record, which rules see."""
        if node not in self.reader.nodes():
            raise EventError(f"nothing is known of a node {node!r}", "sinfo -N shows their names")
        now = self._clock()
        self.ledger.take_own([make(self.reader.cluster, node, now, {**said, "by": f"uid {asker.uid}"})])
        return {"noted": now}

    def _said(self, asker: Asker, parameters: Parameters, kind: str) -> dict[str, Any]:
        node, case = parameters.get("node", ""), parameters.get("case", "")
        if not node and not case:
            raise EventError("the note is of no node and of no case")
        text, now = parameters.get("text", ""), self._clock()
        future = self.ledger.call(lambda writer: wordings.say(writer, kind, text, asker.uid, now, node=node, case=case))
        future.result(_NOTED_S)
        return {"noted": now}

    def open_cases(self, asker: Asker, node: str) -> list[Conclusion]:
        """Return the open cases of a node that may be shown to who asks."""
        return self._open(self._shown(asker, self._conclusions(node=node)))

    def _conclusions(self, node: str | None = None, case: str | None = None, since: float = 0.0) -> list[Conclusion]:
        return [conclusions.decode(line) for line in self.reader.conclusions(node, case, since)]

    def _shown(self, asker: Asker, found: Sequence[Conclusion]) -> list[Conclusion]:
        """Return those that may be shown to who asks: not what rests on the doings of few users."""
        if not asker.private:
            return list(found)
        shown, hidden = [], set()
        for one in found:
            records = [self.reader.record(*key) for key in one.records]
            users = {record.uid for record in records if record is not None and _is_of_users(record)}
            unknown = one.action == REVET and None in records  # it may be of users, whose records are archived
            if asker.may_see(users) if users else not unknown:
                shown.append(one)
            else:
                hidden.add(one.case)  # its end, too, though that may rest on nobody's doing
        return [one for one in shown if one.case not in hidden]

    def _open(self, found: Sequence[Conclusion]) -> list[Conclusion]:
        """Return the cases that are open: of a rule that is no longer one, or another one now, none is."""
        closed = {one.case for one in found if one.state == CLOSED}
        known = self.judge.open
        return [
            one for one in found
            if one.state == OPEN and one.case not in closed and (known is None or one.case in known)
        ]  # fmt: skip


def _is_of_users(record: Event) -> bool:
    """Return whether a record is of a user's doing, of one who is known where the kernel or root tells of it."""
    return record.source == USER or (record.uid is not None and trust.doer(record) == USER)


def _is_shown(asker: Asker, record: Event) -> bool:
    """Return whether a record may be shown: what another user's processes did is not, whoever tells of it."""
    if asker.staff or record.uid is None or record.uid == asker.uid:
        return True
    return trust.doer(record) != USER and not asker.private


def _shown_to(asker: Asker, record: Event) -> Event:
    """Return a record without whose job it is of, where that is hidden: the kernel names a job, and not its user."""
    if not asker.private or record.uid is not None or record.job is None:
        return record
    return dataclasses.replace(record, job=None, step="", run=None)


def _record(event: Event) -> dict[str, Any]:
    return {key: value for key, value in dataclasses.asdict(event).items() if value not in (None, "", {})}


def number(parameters: Parameters, name: str, usual: float) -> float:
    """Return a number of seconds or hours. Raises EventError."""
    try:
        found = float(parameters.get(name, usual))
    except ValueError:
        found = -1.0
    if not 0 < found < 1e10:
        raise EventError(f"{name} is no such number")
    return found
