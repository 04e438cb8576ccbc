"""The vet step: srun with a task on every node, and what comes back from it.

The output is read with srun's labels, since they also tell whose an error is. Every wait is bounded: by the
protocol's budget and a margin for srun's own start, and whatever then still runs is ended.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import secrets
import selectors
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from piolet.api import INCONCLUSIVE, Verdict
from piolet.vet import hostlist, parts, records
from piolet.vet.coordinator import Coordinator
from piolet.vet.failures import VetError
from piolet.vet.meeting import MEETING_VARIABLE, START_S
from piolet.vet.plan import HOST, Plan
from piolet.vet.records import Record

PLAN_VARIABLE = "SLURM_PIOLET_VET"
PLAN_MAX = 98304
"""A word of the environment may be 128 KiB long."""
_APART_S = 3.0
"""srun may take longer to start its tasks; afterwards the nodes differ by less."""
_END_S = 2.0
_LINE_MAX = 1 << 20
_LABELLED = re.compile(rb" *(\d+): (.*)", re.DOTALL)
_TASK_FAILED = re.compile(r"srun: error: (\S+): tasks? [^:]*: (.+)")
_OF_A_NODE = re.compile(r"(?:srun|slurmstepd): error: (?:Node failure on|.*\bon node) ([\w.-]+)")
# They were meant for the application's step, and srun would take them for this one.
_NOT_FOR_US = (
    "SLURM_CPU_BIND", "SLURM_CPUS_PER_GPU", "SLURM_CPUS_PER_TASK", "SLURM_DISTRIBUTION", "SLURM_EXACT",
    "SLURM_EXCLUSIVE", "SLURM_GPU_BIND", "SLURM_GPUS_PER_TASK", "SLURM_HINT", "SLURM_HOSTFILE", "SLURM_LABELIO",
    "SLURM_MEM_BIND", "SLURM_MULTI_PROG", "SLURM_NPROCS", "SLURM_NTASKS", "SLURM_NTASKS_PER_CORE",
    "SLURM_NTASKS_PER_GPU", "SLURM_NTASKS_PER_NODE", "SLURM_NTASKS_PER_SOCKET", "SLURM_OVERCOMMIT",
    "SLURM_PTY_PORT", "SLURM_STDERRMODE", "SLURM_STDINMODE", "SLURM_STDOUTMODE", "SLURM_THREADS_PER_CORE",
    "SLURM_UNBUFFEREDIO", "SLURM_WAIT", "SRUN_CPUS_PER_TASK",
)  # fmt: skip
_SCORE = re.compile(r"_OPTION_piolet_score_|^SLURM_PIOLET_SCORE")


@dataclass(frozen=True)
class Found:
    """What a vet step came to: records, and the nodes that did not tell everything, with the reason."""

    records: Sequence[Record]
    lost: Mapping[str, str]


def plan_text(plan: Plan) -> str:
    """Return the plan as it travels. Raises VetError: it is too long."""
    data = plan.to_json()
    if len(data) > PLAN_MAX:
        raise VetError(
            f"the protocol is {len(data)} bytes long when it is worked out, more than {PLAN_MAX}", "split it in two"
        )
    return data.decode("utf-8")


def words(srun: str, job: int, count: int, plan: Plan, program: str, socket: str) -> list[str]:
    """Return the command of the vet step."""
    stdin = "all" if _meets(plan) else "none"
    minutes = math.ceil((plan.budget_s + START_S + plan.meetings_s) / 60) + 1
    return [
        srun, "--overlap", f"--jobid={job}", f"--nodes={count}", f"--ntasks={count}", "--ntasks-per-node=1",
        "--environment=none", "--vet=none", "--export=ALL", f"--input={stdin}", "--output=all", "--error=all",
        "--label", "--no-kill", "--kill-on-bad-exit=0", "--wait=0", "--mpi=none", "--cpu-bind=none", "--mem=0",
        "--job-name=piolet-vet", f"--time={minutes}", program, socket,
    ]  # fmt: skip


def _meets(plan: Plan) -> bool:
    return any(task.scope != "node" and task.where == HOST for task in plan.tasks)


def environment(environ: Mapping[str, str], text: str) -> dict[str, str]:
    """Return the environment of the vet step's srun.

    A vetting is not scored; there is no word for that, since a site need not have the plugin.
    """
    ours = {n: v for n, v in environ.items() if n not in _NOT_FOR_US and not _SCORE.search(n)}
    return {**ours, PLAN_VARIABLE: text}


def run(plan: Plan, nodes: Sequence[str], command: Sequence[str], environ: Mapping[str, str]) -> Found:
    """Run the step, and return when every node has told everything, or the time is up. Raises VetError."""
    here = tuple(task for task in plan.tasks if task.where == HOST)
    own = replace(plan, tasks=here)
    text = plan_text(own)
    others = [record for node in nodes for record in _elsewhere(plan, node)]
    if not here:
        return Found(others, {})
    leader = Coordinator(own, nodes, time.monotonic, START_S)
    reader = _Reader(leader, nodes, plan.budget_s)
    with _meeting_place(own) as secret:
        try:
            process = subprocess.Popen(
                list(command), stdin=subprocess.PIPE if secret else subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE, env={**environment(environ, text), **secret},
                start_new_session=True,  # the terminal's Ctrl-C is for us, and we end it
            )  # fmt: skip
        except OSError as error:
            raise VetError(f"cannot start {command[0]}: {error.strerror}") from None
        try:
            reader.read(process)
        finally:
            _end(process, _END_S if leader.done and not leader.lost else 0.0)
    return Found([*leader.records, *others], leader.lost)


@contextlib.contextmanager
def _meeting_place(plan: Plan) -> Iterator[dict[str, str]]:
    """Yield the variable with what nodes need to meet: a secret, and for process groups a directory; or nothing.

    The directory is made here, where the job was started from: that is the one place that all nodes are likely to see.
    """
    if not _meets(plan):
        yield {}
        return
    token, shared = secrets.token_hex(16), ""
    if any(task.scope == "group" for task in plan.tasks):
        with contextlib.suppress(OSError):
            shared = tempfile.mkdtemp(prefix=".piolet-vet-", dir=os.getcwd())
    try:
        yield {MEETING_VARIABLE: f"{token}:{shared}"}
    finally:
        if shared:
            shutil.rmtree(shared, ignore_errors=True)


def _elsewhere(plan: Plan, node: str) -> list[Record]:
    """Return records of what a vet step cannot judge yet: it must be seen, and fail unless the protocol says not."""
    found = []
    for task in plan.tasks:
        if task.where == HOST:
            continue
        verdict = Verdict(INCONCLUSIVE, "a vet step cannot judge inside the environment yet")
        found.append(records.record(node, task.name, task.kind, verdict, 0.0))
    return found


class _Reader:
    def __init__(self, leader: Coordinator, nodes: Sequence[str], budget_s: float) -> None:
        self._leader = leader
        self._nodes = list(nodes)
        self._joiner = parts.Joiner()
        self._budget_s = budget_s
        self._said: dict[str, str] = {}
        self._end = math.inf
        self._last = ""

    def read(self, process: subprocess.Popen[bytes]) -> None:
        """Feed the leader until it is done or srun has ended."""
        assert process.stdout is not None and process.stderr is not None
        rests = {process.stdout.fileno(): b"", process.stderr.fileno(): b""}
        with selectors.DefaultSelector() as selector:
            for descriptor in rests:
                selector.register(descriptor, selectors.EVENT_READ)
            while not self._leader.done and selector.get_map():
                wait = max(0.0, min(self._leader.deadline, self._end) - time.monotonic())
                for key, _ in selector.select(wait):
                    data = os.read(key.fd, 65536)
                    if not data:
                        selector.unregister(key.fd)
                    *lines, rest = (rests[key.fd] + data).split(b"\n")
                    rests[key.fd] = rest if len(rest) < _LINE_MAX else b""
                    for line in lines:
                        self._take(line)
                self._leader.advance()
                self._order(process)
                if time.monotonic() >= self._end:
                    # Those that have told everything by themselves may still be meeting: the leader bounds that.
                    self._end = math.inf
                    self._lose("it did not finish within the budget")
        self._lose(self._last or "its task ended without a word")

    def _order(self, process: subprocess.Popen[bytes]) -> None:
        """Send what the leader has for all nodes; srun copies its standard input to every task."""
        data = b"".join(self._leader.orders())
        if data and process.stdin is not None:
            # Some kilobytes into a pipe of 64: it does not wait, unless srun is dead or stopped.
            with contextlib.suppress(OSError):
                os.write(process.stdin.fileno(), data)

    def _lose(self, reason: str) -> None:
        """Give up those that have not told everything."""
        for node in self._nodes:
            if not self._leader.has_ended(node):
                self._leader.lose(node, self._said.get(node) or reason)
        self._leader.advance()

    def _take(self, line: bytes) -> None:
        match = _LABELLED.fullmatch(line)
        if match is None:
            self._note(line.decode("utf-8", "replace").strip())
            return
        number = int(match[1])
        if number >= len(self._nodes):
            return
        # srun numbers tasks in the order of the job's nodes, and there is one on each.
        node = self._nodes[number]
        whole = self._joiner.take(number, match[2])
        if whole is None:
            return
        decoded = records.decode(whole)
        if decoded is not None:
            self._end = min(self._end, time.monotonic() + self._budget_s + _APART_S)
            self._leader.feed(node, whole)
            return
        text = whole.decode("utf-8", "replace").strip()
        with contextlib.suppress(ValueError, AttributeError, RecursionError):
            text = str(json.loads(text).get("error") or text)
        if text and not text.startswith("hint:"):
            self._said[node] = text.removeprefix("piolet: error: ")[:300]

    def _note(self, text: str) -> None:
        """Keep what srun says of nodes, for the reason of those that are lost."""
        failed = _TASK_FAILED.match(text)
        named = failed or _OF_A_NODE.match(text)
        if named is not None:
            with contextlib.suppress(VetError):
                for node in hostlist.expand(named[1]):
                    self._said.setdefault(node, f"its task ended: {failed[2]}" if failed else text)
        elif "error:" in text:
            self._last = f"the vet step failed: {text.partition('error:')[2].strip()}"[:300]


def _end(process: subprocess.Popen[bytes], patience_s: float) -> None:
    """Wait `patience_s` for srun, then end it and its step."""
    for number, bound in ((None, patience_s), (signal.SIGTERM, _END_S), (signal.SIGKILL, _END_S)):
        if number is not None:
            process.send_signal(number)
        try:
            process.wait(bound)
            break
        except subprocess.TimeoutExpired:
            continue
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()
