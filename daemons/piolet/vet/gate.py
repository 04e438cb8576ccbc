"""What `--vet` does in sbatch, salloc and srun: vets the job's nodes, and says how srun goes on.

    submit      sbatch, salloc: only whether the protocol is right
    step        srun inside an allocation: bad nodes are left out of the step
    allocated   srun with an allocation of its own: with a bad node it is given back, and others are asked for

It never starts an application on a node that is not good: what cannot be judged or done is refused with the reason.
"""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from piolet.base import texts
from piolet.base.errors import PioletError, SlurmError, VetError
from piolet.slurm import jobs, srunwords
from piolet.slurm.srunwords import Words
from piolet.vet import gpucount, kept, problems, relaunch, request, results, screen, step, told
from piolet.vet.relaunch import NodeChoice
from piolet.vet.request import VetRequest
from piolet.vet.runner import plan
from piolet.vet.runner.plan import ENVIRONMENT, Plan, start_s
from piolet.vet.shortcut import Basis
from piolet.vet.verdicts import BAD, GOOD, STATUS_BAD, Decision

STAGES = ("submit", "step", "allocated")
_HELP_S = 10.0
_TOLD_S = 2.0
_ATTACHES = "job:"  # environment/attach.py

Say = Callable[[str], None]
Load = Callable[[str], Plan]


@dataclass(frozen=True)
class Site:
    """What the site's configuration says: the program and the socket of vet steps, and where a job's result goes."""

    program: str
    socket: str
    report: Callable[[int], str] = "vet-{}.json".format


@dataclass(frozen=True)
class GateCall:
    """What the plugin asks; `words` is how srun was called.

    own      the allocation was made by this srun, so that it may give it back
    started  the environment that this srun was started with: it has added its job's variables since
    """

    stage: str
    job: int
    request: str
    words: tuple[str, ...]
    own: bool = False
    started: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class GateAnswer:
    """The exit status, and the words of the command that srun becomes; without words it goes on as it is."""

    status: int
    words: tuple[str, ...] = ()


def answer(
    order: GateCall, site: Site, load: Load, environ: Mapping[str, str], say: Say, watched: Basis | None = None
) -> GateAnswer:
    """Do what `order` asks. `say` is given text for people; `watched` keeps good news. Raises PioletError."""
    if order.stage == "submit":
        _plan(request.parse(order.request), load)
        return GateAnswer(0)
    found = GateAnswer(1)
    cancel = functools.cache(lambda: jobs.cancel(order.job, _tool(order.words, "scancel")))
    own = order.stage == "allocated" and order.own
    telling: told.Telling | None = None
    try:
        with step.uncollected():
            gate = _Gate(order, site, load, environ, say, watched, cancel if own else lambda: None)
            found = gate.answer()
            telling = gate.telling
    finally:
        # srun ends, or begins anew, and nobody else knows of its allocation.
        if own and (found.status or found.words):
            if telling is not None:
                telling.wait(_TOLD_S)
            cancel()()
    return found


def _plan(asked: VetRequest, load: Load) -> Plan:
    found = asked.apply(load(asked.path))
    plan.text(found)
    return found


class _Gate:
    """One srun's vetting."""

    def __init__(
        self, order: GateCall, site: Site, load: Load, environ: Mapping[str, str], say: Say, watched: Basis | None,
        interrupted: Callable[[], object],
    ) -> None:  # fmt: skip
        self.telling: told.Telling | None = None
        self._watched = watched
        self._interrupted = interrupted
        self._order = order
        self._site = site
        self._environ = environ
        self._say = say
        self._asked = request.parse(order.request)
        self._plan = _plan(self._asked, load)
        self._words = _parse(order.words, environ)
        self._environment = step.environment_request(self._words.value("environment"), environ)
        if self._environment.startswith(_ATTACHES):
            raise VetError(
                "a step that enters the container of another is not vetted: that one is using the nodes",
                "leave out --vet, or give --vet=none",
            )
        attached = self._words.value("jobid")
        self._job = int(attached) if attached is not None and attached.isdecimal() else order.job

    def answer(self) -> GateAnswer:
        if self._words.value("interactive") is not None:
            return GateAnswer(0)  # salloc's own shell: its sruns are vetted
        nodes = jobs.nodes_of(self._job, self._environ, _tool(self._order.words, "scontrol"))
        if self._order.stage == "allocated":
            return self._allocated(nodes, *self._decide(nodes, None))
        place = kept.place(self._job, self._plan, self._environment, self._environ)
        # Of several sruns that a job starts at once, one vets.
        bound = self._plan.budget_s + self._plan.meetings_s(len(nodes)) + start_s(len(nodes))
        with kept.alone(place.file, bound) if place is not None else contextlib.nullcontext():
            decision, choice = self._decide(nodes, place)
        if not choice.nodes:
            return self._refuse(choice.reason if decision.abort else decision.futile or choice.reason)
        if choice.words:
            used = set(choice.nodes)
            unused = [node for node in nodes if node not in used]
            self._say(f"going on with {len(choice.nodes)} of {len(nodes)} nodes, without {_some(unused)}\n")
        return GateAnswer(0, choice.words)

    def _decide(self, nodes: Sequence[str], place: kept.KeptFile | None) -> tuple[Decision, NodeChoice]:
        """Return what is thought of the nodes, and which to use; `place` keeps it for the job. Raises PioletError."""
        scontrol = _tool(self._order.words, "scontrol")
        earlier = None
        if place is not None:
            earlier = kept.kept(place, nodes, time.time(), lambda: jobs.started(self._job, scontrol))
        if earlier is not None:
            decision, at = earlier.decision, time.time() - earlier.age_s
            self._say(screen.brief(self._plan, decision, earlier.age_s))
        else:
            at, begun = time.time(), time.monotonic()
            decision = self._vet(nodes)
            seconds = time.monotonic() - begun
            self._say(screen.render(self._plan, decision, seconds))
        choice, error = self._choose(nodes, decision)
        if earlier is None:
            left = problems.spares(len(nodes), len(decision.good), choice.wanted) if not decision.futile else ""
            self._say(f"{left}\n" if left else "")
            self._report(decision, choice, at, seconds)
            self._tell(told.document(self._plan, decision, self._job, choice), decision)
            if choice.nodes and place is not None:
                kept.keep(place, decision, at)
        if error is not None:
            raise error
        if choice.nodes and not choice.words and set(decision.state.values()) == {GOOD}:
            self._remember(len(nodes), at)
        return decision, choice

    def _remember(self, count: int, at: float) -> None:
        """Leave the record that spares this job's next srun the command, unless it was about another job."""
        # The plugin does not know whether the environment is the same.
        inside = any(task.where == ENVIRONMENT for task in self._plan.tasks)
        if self._watched is not None and not inside and self._environ.get("SLURM_JOB_ID") == str(self._job):
            text = f"vetting '{self._plan.name}' of {time.strftime('%H:%M:%S', time.localtime(at))}"
            note = f"{text}: all {count} nodes good"
            self._watched.keep(text, note, at, at + kept.good_for_s(self._plan))

    def _tell(self, said: dict[str, Any], decision: Decision) -> None:
        """Tell the pioletd here, or where there is none that of the node that is most likely to have one."""
        if told.tell(self._site.socket, said):
            return
        node = min(decision.state, key=lambda name: decision.state[name] == BAD)
        self.telling = told.Telling(
            self._launch({}).telling(node), step.PLAN_VARIABLE, said, step.environment(self._environ, "")
        )  # fmt: skip

    def _launch(self, leaf: Mapping[str, str]) -> step.Launch:
        return step.Launch(
            _tool(self._order.words, "srun"), self._job, self._site.program, self._site.socket,
            step.environment_words(self._words.value("environment"), self._environ), leaf,
        )  # fmt: skip

    def _vet(self, nodes: Sequence[str]) -> Decision:
        leaf: Mapping[str, str] = {}
        if step.meets(self._plan):
            with contextlib.suppress(SlurmError):  # then no switch is named
                leaf = jobs.leaves(_tool(self._order.words, "scontrol"))
        found = step.run(self._plan, nodes, self._launch(leaf), self._environ, self._interrupted)
        gpus: Mapping[str, int] = {}
        if gpucount.wanted(self._plan):
            with contextlib.suppress(SlurmError):  # then they are held against each other
                gpus = jobs.gpus_of(nodes, _tool(self._order.words, "scontrol"))
        return found.decision(self._plan, nodes, gpus)

    def _choose(self, nodes: Sequence[str], decision: Decision) -> tuple[NodeChoice, PioletError | None]:
        if decision.abort:
            return NodeChoice((), reason="the protocol says to stop"), None
        try:
            return relaunch.choose(self._words, nodes, self._plan, decision, self._environ), None
        except (SlurmError, VetError) as error:
            return NodeChoice(()), error

    def _report(self, decision: Decision, choice: NodeChoice, started: float, seconds: float) -> None:
        path = self._asked.report or self._site.report(self._job)
        try:
            results.write(path, results.document(self._plan, decision, str(self._job), started, seconds, choice.nodes))
        except VetError as error:
            # Nobody asked for the default one, and a result that cannot be written is no fault of a node.
            if self._asked.report:
                self._say(f"piolet: warning: {error.message}\n")

    def _allocated(self, nodes: Sequence[str], decision: Decision, choice: NodeChoice) -> GateAnswer:
        if choice.nodes and not decision.bad:
            return GateAnswer(0)
        bad = decision.bad
        if decision.abort or not bad:
            return self._refuse(choice.reason)
        if decision.futile:
            return self._refuse(f"{decision.futile}, so no other nodes are asked for")
        if not self._order.own:
            return self._refuse("this srun did not make the allocation, so it cannot ask for other nodes")
        started = self._order.started or self._environ
        left = self._asked.retries - 1
        why = "no further try is allowed (retries)"
        if left >= 0:
            words = relaunch.again(self._words, bad, self._asked.with_retries(left), self._environ)
            why = jobs.impossible(words, started)
            if not why:
                self._say(f"giving job {self._job} back and asking for other nodes than {_some(bad)}\n")
                return GateAnswer(0, tuple(words))
            why = f"no other nodes than {_some(bad)} can be had: {why}"
        if not choice.nodes:
            return self._refuse(why)
        # Slurm lets no srun give back a part of what it has: it takes the good ones anew, and they are vetted anew.
        fewer = relaunch.with_fewer(self._words, nodes, bad, self._plan, self._asked.with_retries(0), started)
        count = texts.counted(len(choice.nodes), "node")
        self._say(f"{why}\ngiving job {self._job} back and asking for {count}, without {_some(bad)}\n")
        return GateAnswer(0, tuple(fewer))

    def _refuse(self, reason: str) -> GateAnswer:
        self._say(f"piolet: error: the application was not started: {reason or 'no node is good'}\n")
        return GateAnswer(STATUS_BAD)


def _parse(words: Sequence[str], environ: Mapping[str, str]) -> Words:
    try:
        return srunwords.parse(words)
    except SlurmError as error:
        # It may be an option of somebody else's plugin, which srun's help knows.
        try:
            text = subprocess.run(
                [_tool(words, "srun"), "--help"], capture_output=True, timeout=_HELP_S, check=False,
                stdin=subprocess.DEVNULL, env=dict(environ),
            ).stdout.decode("utf-8", "replace")  # fmt: skip
        except (OSError, subprocess.TimeoutExpired):
            raise error from None
        return srunwords.parse(words, srunwords.plugin_options(text))


def _tool(words: Sequence[str], name: str) -> str:
    """Return the command `name` of the same installation as the srun that asks."""
    directory = os.path.dirname(words[0]) if words else ""
    return os.path.join(directory, name) if directory else name


def _some(nodes: Sequence[str]) -> str:
    return ", ".join(nodes[:10]) + (f" and {len(nodes) - 10} more" if len(nodes) > 10 else "")
