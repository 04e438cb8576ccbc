"""What srun decided of a vetting, told to the pioletd of this node for the site's records: the user's word.

A node by itself knows what it measured, and not what that came to against its peers, who was left out, and why. Where
srun runs there may be no pioletd, as on a login node: then a step of the job tells that of one of its nodes, beside
whatever srun does next (decision 134). Whatever goes wrong nobody is told.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
from collections.abc import Mapping, Sequence
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
_STEP_S = 30
_BY_STEP_MAX = 60_000  # a variable is at most 128 KiB long


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


def tell(path: str, said: dict[str, Any]) -> bool:
    """Tell pioletd, which listens for vettings at `path`; return False if it does not listen. Raises nothing."""
    with contextlib.suppress(WireError), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as channel:
        channel.settimeout(_WAIT_S)
        try:
            channel.connect(path)
            channel.send(wire.encode_decision(_text(said)))
        except OSError:
            return False
    return True


class Telling:
    """A step that tells the pioletd of a node, in the background; it is ended after half a minute.

    command   of the step; what it is to tell is in the variable `variable` of its environment
    """

    def __init__(self, command: Sequence[str], variable: str, said: dict[str, Any], environ: Mapping[str, str]) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        text = _text(said)
        if len(text) > _BY_STEP_MAX:
            return
        with contextlib.suppress(OSError):
            self._process = subprocess.Popen(
                ["timeout", "-k", "5", str(_STEP_S), *command], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL, env={**environ, variable: text}, start_new_session=True,
            )  # fmt: skip

    def wait(self, seconds: float) -> None:
        """Wait for its end, no longer than that: the job is over then."""
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)


def _text(said: dict[str, Any]) -> str:
    return json.dumps(said, separators=(",", ":"))


def _hosts(decision: Decision, word: str) -> str:
    return hostlist.compress([node for node, state in decision.state.items() if state == word])
