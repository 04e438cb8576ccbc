"""What srun decided of a vetting, told to the pioletd of this node for the site's records: the user's word.

A node by itself knows what it measured, and not what that came to against its peers, who was left out, and why. It is
told where there is a pioletd, as on the node of a batch script; a login node has none, and then the nodes' own verdicts
are all that the site has. Nothing waits for it, and whatever goes wrong nobody is told.
"""

from __future__ import annotations

import contextlib
import json
import socket
from typing import Any

from piolet.api import PASS
from piolet.base import hostlist
from piolet.base.errors import WireError
from piolet.transport import wire
from piolet.vet.relaunch import NodeChoice
from piolet.vet.runner.plan import Plan, Task
from piolet.vet.verdicts import BAD, GOOD, WARNED, Decision

_WHY_MAX, _SENTENCES_MAX, _SENTENCE_MAX = 20, 4, 300
_WAIT_S = 0.2


def document(plan: Plan, decision: Decision, job: int, choice: NodeChoice) -> dict[str, Any]:
    """Return what is told: nodes as host lists, sentences of a few of them."""
    state = {word: _hosts(decision, word) for word in (GOOD, WARNED, BAD)}
    first = [node for node, reasons in decision.reasons.items() if reasons][:_WHY_MAX]
    evals: dict[str, dict[str, list[str]]] = {}
    for record in decision.records:
        if record.outcome != PASS:
            evals.setdefault(record.eval, {}).setdefault(record.outcome, []).append(record.node)
    said = {
        "claimed": job,
        "plan": plan.digest(),
        "protocol": plan.name[:200],
        "state": {word: hosts for word, hosts in state.items() if hosts},
        "excluded": state[BAD],
        "why": {node: [text[:_SENTENCE_MAX] for text in decision.reasons[node][:_SENTENCES_MAX]] for node in first},
        "chosen": hostlist.compress(choice.nodes),
        "spares": max(0, len(decision.good) - choice.wanted) if choice.wanted else None,
        "evals": {
            name: {outcome: hostlist.compress(nodes) for outcome, nodes in found.items()}
            for name, found in evals.items()
        },
        "judges": {task.name: judge_of(task) for task in plan.tasks if task.name in evals},
        "abort": decision.abort[:_SENTENCE_MAX],
        "futile": decision.futile[:_SENTENCE_MAX],
    }
    return {name: value for name, value in said.items() if value not in ("", {}, [], None)}


def judge_of(task: Task) -> str:
    """Return what an eval is held against besides its own limits: limit (nothing), peers, history or pair."""
    if task.scope != "node":
        return "pair"
    if task.baseline == "peers" or task.better == "same":
        return "peers"
    return "history" if task.baseline in ("history", "site") else "limit"


def tell(path: str, said: dict[str, Any]) -> None:
    """Tell pioletd, which listens for vettings at `path`. Raises nothing."""
    with contextlib.suppress(OSError, WireError), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as channel:
        channel.settimeout(_WAIT_S)
        channel.connect(path)
        channel.send(wire.encode_decision(json.dumps(said, separators=(",", ":"))))


def _hosts(decision: Decision, word: str) -> str:
    return hostlist.compress([node for node, state in decision.state.items() if state == word])
