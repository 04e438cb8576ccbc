"""What happened to a job: events from the central service, of the job itself and of its nodes while it ran there.

The service tells whoever asks what they may see (central/answers.py); nothing is asked for in another's name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]

from piolet.base import hostlist
from piolet.base.errors import PioletError
from piolet.events.envelope import SITE
from piolet.observe.job import Happened, Job, Run, Vetting
from piolet.observe.writing import conformed
from piolet.slurm import past
from piolet.steps import identity

NODES_MOST = 32
EVENTS_MOST = 500
_BEFORE_S, _AFTER_S = 5.0, 300.0  # of a job: a node's fault may be told after it
_APART_S = 60.0  # of the clocks of a login node and of Slurm
NODE_STATE = "slurm.node_state"
_QUIET = ("node.heartbeat", "node.start", "vet.verdict")

Ask = Callable[[str, float], dict[str, Any]]
"""Asks the central service of a node, so many seconds back, and returns its answer. Raises PioletError."""


def events(view: Job, ask: Ask | None, missing: list[str], clock: float) -> list[Happened]:
    """Return what happened to a job and, while it ran, on its nodes; the first first. What is not known is said."""
    if ask is None:
        missing.append("events of its nodes: there is no central service here")
        return []
    spans = [run for run in (*view.earlier, view.now) if run.start]
    nodes = list(dict.fromkeys(node for run in spans for node in run.nodes))
    if not nodes:
        return []
    found: dict[tuple[Any, ...], Happened] = {}
    if len(nodes) > NODES_MOST:
        nodes = _of_interest(view, nodes)
        missing.append(f"events: of {hostlist.compress(nodes)} only, {NODES_MOST} nodes at most are asked for")
    first = min(run.start or clock for run in spans)
    for node in nodes:
        try:
            said = ask(node, max(clock - first + _APART_S, 1.0))
        except PioletError as error:
            if getattr(error, "status", 0) == 400:
                missing.append(f"events of {node}: the central service has none")
                continue
            missing.append(f"events of its nodes: {error.message}")
            break
        if not said.get("complete", True):
            missing.append(f"events of {node}: the central service told the latest ones only")
        for record in said.get("records", ()):
            if isinstance(record, dict) and (one := happened(record)) and _concerns(record, one, view, spans):
                found[record.get("epoch"), record.get("seq"), node] = one
    events = sorted(found.values(), key=lambda one: one.time)
    if len(events) > EVENTS_MOST:
        missing.append(f"events: the first {len(events) - EVENTS_MOST} of {len(events)} are left out")
    return events[-EVENTS_MOST:]


def node_states(view: Job, sacctmgr: str) -> list[Happened]:
    """Return what Slurm's accounting says of the job's nodes that failed while it ran; nothing where it says none."""
    began = view.now.start or 0.0
    try:
        states = past.ask_states(began, sacctmgr)
    except PioletError:
        return []
    return [
        Happened(
            one.start, one.node, NODE_STATE, SITE, "", "", "", one.reason, {"state": one.state, "reason": one.reason}
        )
        for one in states
        if one.node in view.now.nodes and one.state in ("down", "fail") and one.start >= began - _BEFORE_S
    ]


def _of_interest(view: Job, nodes: list[str]) -> list[str]:
    """Return the nodes to ask for where there are too many: those of steps that failed first."""
    bad = [node for step in view.now.steps if step.status or step.signal for node in step.nodes]
    return list(dict.fromkeys([*bad, *nodes]))[:NODES_MOST]


def _concerns(record: Mapping[str, Any], one: Happened, view: Job, spans: Sequence[Run]) -> bool:
    """Return whether a record is of the job, or of one of its nodes while it ran there."""
    if one.kind in _QUIET:
        return False
    number = record.get("job")
    if number is not None:
        return number == view.number and (not view.step or not one.step or _is_of(one, view))
    if one.source == "user":
        return one.body.get("claimed") == view.number
    return any(
        one.node in run.nodes and (run.start or 0.0) - _BEFORE_S <= one.time <= (run.end or float("inf")) + _AFTER_S
        for run in spans
    )


def _is_of(one: Happened, view: Job) -> bool:
    """Return whether an event is of the step that is looked at: of a component only on its nodes."""
    nodes = {node for step in view.now.steps if step.name == view.step for node in step.nodes}
    return one.step == view.step or (identity.is_of(one.step, view.step) and one.node in nodes)


def happened(record: Mapping[str, Any]) -> Happened | None:
    """Return an event as the central service tells it, None: it is none."""
    body = record.get("body")
    body = body if isinstance(body, dict) else {}
    try:
        return Happened(
            float(record["time"]) - float(record.get("offset") or 0.0), str(record["node"]), str(record["kind"]),
            str(record["source"]), str(record.get("severity", "")), str(record.get("step", "")),
            str(record.get("subject", "")), words(str(record["kind"]), body), body,
        )  # fmt: skip
    except (KeyError, TypeError, ValueError):
        return None


def words(kind: str, body: Mapping[str, Any]) -> str:
    """Return what a record says, as a sentence."""
    for key in ("text", "reason"):
        if body.get(key):
            return str(body[key])[:300]
    if kind == "step.outcome":
        how = f"signal {body['signal']}" if body.get("signal") else f"status {body.get('status', 0)}"
        first = f", task {body['task']} first" if body.get("tasks", 1) != 1 and "task" in body else ""
        many = f"{body.get('tasks', 1)} tasks" if body.get("tasks", 1) != 1 else f"task {body.get('task', '?')}"
        because = f" ({body['why']})" if body.get("why") not in (None, "exit") else ""
        return f"{many} ended with {how}{first}{because}"
    if kind == "fs.blocked" and isinstance(body.get("processes"), int):
        return f"processes that wait for a file system for {body.get('seconds', '?')} s: {body['processes']}"
    if kind == "slurm.job_end":
        return f"{body.get('state', '?')}"
    if kind == "vet.decision":
        chosen, left_out = (body.get(key, "none") for key in ("chosen", "excluded"))
        return f"'{body.get('protocol', '')}': chosen {chosen}, left out {left_out}"
    return ", ".join(f"{key} {value}" for key, value in body.items() if isinstance(value, (str, int, float)))[:300]


def table(events: Sequence[Happened]) -> pa.Table:
    """Return events as the layout's table `events` has them, but for tasks that ended well."""
    rows = [one for one in events if one.kind != "step.outcome" or one.body.get("status") or one.body.get("signal")]
    texts = ("node", "subject", "kind", "source", "severity", "text")
    columns: dict[str, list[Any]] = {name: [getattr(one, name) or None for one in rows] for name in texts}
    columns |= {"time": [int(one.time * 1e9) for one in rows], "body": [json.dumps(one.body) for one in rows]}
    return conformed("events", columns)


def decided(events: Sequence[Happened]) -> list[Vetting]:
    """Return vettings as srun told them to the node, for those whose result files are gone or elsewhere."""
    found = []
    for one in events:
        if one.kind != "vet.decision":
            continue
        state = one.body.get("state")
        state = state if isinstance(state, dict) else {}
        why_not = one.body.get("why")
        why_not = why_not if isinstance(why_not, dict) else {}
        bad = _expanded(one.body.get("excluded") or state.get("bad"))
        left_out = {node: tuple(map(str, why_not.get(node) or ())) for node in bad}
        said = (str(one.body.get("protocol", "")), one.time, None)
        nodes = (_expanded(state.get("good")), _expanded(state.get("warned")), left_out)
        found.append(Vetting(*said, *nodes, _expanded(one.body.get("chosen")), str(one.body.get("abort", "")), ""))
    return found


def _expanded(text: Any) -> tuple[str, ...]:
    try:
        return tuple(hostlist.expand(text)) if isinstance(text, str) and text else ()
    except PioletError:
        return ()
