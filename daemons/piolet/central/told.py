"""What users are told: a line at the end of their step that failed, and what is known of a node."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from piolet.base.errors import EventError
from piolet.central.answers import Answers, Asker, Parameters, number
from piolet.central.recent import WEEK_S, Recent, StepOf
from piolet.central.rules import users
from piolet.events.envelope import KERNEL, ROOT, SITE, Event

_JOB, _NODES = re.compile(r"[0-9]{1,10}"), re.compile(r"[1-9][0-9]{0,5}")
_RECORDS_MOST = 1000
_NOT_USERS = (KERNEL, ROOT, SITE)
_OUT = ("down", "drain", "fail")
_NODES_MOST = 32
"""A step that failed on more says nothing of one of them, and each takes a look into the store."""


class Told:
    """Three more questions that `answers` can answer."""

    def __init__(self, answers: Answers, recent: Recent, clock: Callable[[], float]) -> None:
        self._answers, self._recent, self._clock = answers, recent, clock
        answers.ask["GET", "line"] = self._line
        answers.ask["GET", "about"] = self._about
        answers.ask["GET", "spares"] = self._spares

    def _line(self, asker: Asker, parameters: Parameters) -> dict[str, Any]:
        """Return {"known": whether it is known how a step of who asks failed, "line": what is told of it, or null}."""
        job, step = parameters.get("job", ""), parameters.get("step", "")
        if not _JOB.fullmatch(job):
            raise EventError("the job is no number")
        failed = self._recent.step((asker.uid, int(job), step))
        if failed is None:
            return {"known": False, "line": None}
        few = failed.nodes if len(failed.nodes) <= _NODES_MOST else ()
        known = {node: self._node(asker, node, failed.of) for node in few}
        others = self._recent.others(failed)
        return {"known": True, "line": users.line(list(failed.nodes), known, others, private=asker.private)}

    def _spares(self, _: Asker, parameters: Parameters) -> dict[str, Any]:
        """Return {"line": advice on spare nodes for a job, or null, "failures", "node_hours": what it rests on}."""
        nodes = parameters.get("nodes", "")
        if not _NODES.fullmatch(nodes):
            raise EventError("a job has a number of nodes")
        known = self._recent.nodes.known(self._clock())
        line = users.spares_line(int(nodes), number(parameters, "hours", 0.0), known.failures, known.hours)
        return {"line": line, "failures": known.failures, "node_hours": known.hours}

    def _about(self, asker: Asker, parameters: Parameters) -> dict[str, Any]:
        """Return {"lines": what is known of a node}."""
        name = parameters.get("name", "")
        node = self._node(asker, name)
        if name not in self._answers.reader.nodes() and not node.cases and not node.faults:
            raise EventError(f"nothing is known of a node {name!r}", "sinfo -N shows their names")
        return {"lines": users.about(node, private=asker.private)}

    def _node(self, asker: Asker, name: str, but: StepOf | None = None) -> users.Node:
        now = self._clock()
        failed, whose = self._recent.failed(name, now, but)
        if not asker.may_see(set(whose)):
            failed = users.Failed()
        last = self._answers.reader.nodes().get(name) if but is None else now
        heard = None if last is None else max(0.0, now - last)
        cases = [one.sentence for one in self._answers.open_cases(asker, name)]
        return users.Node(name, failed, self._faults(name, now) if but is None else {}, cases, heard)

    def _faults(self, node: str, now: float) -> dict[str, int]:
        counts: dict[str, int] = {}
        for event in self._answers.reader.records(node, now - WEEK_S, _RECORDS_MOST, _NOT_USERS).events:
            sentence, times = _fault(event)
            if sentence:
                counts[sentence] = counts.get(sentence, 0) + times
        return counts


def _fault(event: Event) -> tuple[str, int]:
    """Return what a record says against a node, and how often that was; '' where it says nothing against it."""
    body: Mapping[str, Any] = event.body
    reason = body.get("text") or body.get("reason")
    if event.kind == "slurm.node_state":  # these two are in no table of severities
        said = f"Slurm had it in state {body.get('state')}" + (f": {reason}" if reason else "")
        return (said, 1) if body.get("state") in _OUT else ("", 0)
    if event.kind == "link.flap":
        flaps, port = body.get("flaps"), event.subject.removeprefix("port:")
        if isinstance(flaps, int) and flaps > 0:
            return f"{port} went down", flaps
        return f"{port} changed its speed", 1
    if event.severity not in ("fatal", "warn"):
        return "", 0
    return (f"{event.kind}: {reason}" if reason else event.kind), 1
