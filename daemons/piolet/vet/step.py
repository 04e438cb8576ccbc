"""The vet step: srun with a task on every node, and what comes back from it; one more inside the environment.

The output is read with srun's labels, since they also tell whose an error is. Every wait is bounded: by the
protocol's budget and a margin for srun's own start, and whatever then still runs is ended.
"""

from __future__ import annotations

import contextlib
import gc
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from piolet.api import USER
from piolet.base import hostlist
from piolet.base.errors import VetError
from piolet.system import signals
from piolet.vet import bundle, verdicts
from piolet.vet.coordinator import Coordinator, Found
from piolet.vet.runner import parts
from piolet.vet.runner import plan as plans
from piolet.vet.runner.meeting import MEETING_VARIABLE
from piolet.vet.runner.plan import ENVIRONMENT, HOST, Plan, apart_s, start_s
from piolet.vet.runner.records import Record

PLAN_VARIABLE = "SLURM_PIOLET_VET"
_END_S = 2.0
_HURRY_S = 0.6
"""The same after an interrupt: the plugin kills the command 2 s after the first signal."""
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
_VETTING = {"PIOLET_VETTING": "1"}
"""So that the plugin piolet_outcomes says nothing at the end of a vet step."""
_INHERITED = "_SLURM_SPANK_OPTION_piolet_environment_environment"
_SCORE = re.compile(r"_OPTION_piolet_score_|^SLURM_PIOLET_SCORE")


@dataclass(frozen=True)
class Launch:
    """How the vet steps of a job are started.

    program       what a task on the host runs; it finds pioletd at `socket`
    leaf          the switch of each node, where Slurm knows of any
    environment   the words that ask for the application's environment, none where they are inherited; None: it has none
    """

    srun: str
    job: int
    program: str
    socket: str
    environment: tuple[str, ...] | None = None
    leaf: Mapping[str, str] = field(default_factory=dict)

    def words(self, count: int, plan: Plan, where: str) -> list[str]:
        """Return the command of a vet step on `count` nodes."""
        inside = where == ENVIRONMENT
        stdin = "all" if inside or meets(plan) else "none"
        minutes = math.ceil((plan.budget_s + start_s(count) + plan.meetings_s(count)) / 60) + 1
        place = self.environment or () if inside else ("--environment=none",)
        command = ("python3", "-I", "-c", bundle.LOADER) if inside else (self.program, self.socket)
        return [
            self.srun, "--overlap", f"--jobid={self.job}", f"--nodes={count}", f"--ntasks={count}",
            "--ntasks-per-node=1", *place, "--vet=none", "--export=ALL", f"--input={stdin}", "--output=all",
            "--error=all", "--label", "--no-kill", "--kill-on-bad-exit=0", "--wait=0", "--mpi=none", "--cpu-bind=none",
            "--mem=0", "--job-name=piolet-vet", f"--time={minutes}", *command,
        ]  # fmt: skip

    def telling(self, node: str) -> list[str]:
        """Return the command of a step that tells the pioletd of a node what is in PLAN_VARIABLE."""
        return [
            self.srun, "--overlap", f"--jobid={self.job}", "--nodes=1", "--ntasks=1", f"--nodelist={node}",
            "--environment=none", "--vet=none", "--export=ALL", "--input=none", "--quiet", "--mpi=none",
            "--cpu-bind=none", "--mem=0", "--job-name=piolet-vet", "--time=1", self.program, self.socket, "decision",
        ]  # fmt: skip


def environment_request(given: str | None, environ: Mapping[str, str]) -> str:
    """Return what an srun with --environment=`given` (None: without) asks for; '': it has no environment."""
    inherited = [value for name, value in environ.items() if name.endswith(_INHERITED)]
    asked = inherited if given is None else [given]
    return next((value for value in asked if value not in ("", "none")), "")


def environment_words(given: str | None, environ: Mapping[str, str]) -> tuple[str, ...] | None:
    """Return what asks for the environment of an srun with --environment=`given`, as in Launch."""
    if not environment_request(given, environ):
        return None
    return () if given is None else (f"--environment={given}",)


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Keep the collector of cycles off meanwhile.

    What nodes tell is kept to the end and is in no cycle; to look at all of it again whenever it has grown by a quarter
    took a sixth of the CPU time that thousands of nodes cost.
    """
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def meets(plan: Plan) -> bool:
    """Return whether nodes meet in this plan."""
    return any(task.scope != "node" for task in plan.tasks)


def environment(environ: Mapping[str, str], text: str) -> dict[str, str]:
    """Return the environment of the vet step's srun.

    A vetting is not scored; there is no word for that, since a site need not have the plugin.
    """
    ours = {n: v for n, v in environ.items() if n not in _NOT_FOR_US and not _SCORE.search(n)} | _VETTING
    return {**ours, PLAN_VARIABLE: text} if text else ours


def run(
    plan: Plan, nodes: Sequence[str], launch: Launch, environ: Mapping[str, str],
    interrupted: Callable[[], object] = lambda: None,
) -> Found:  # fmt: skip
    """Run what the plan has for the host, then what it has for the environment. Raises VetError.

    It returns when every node has told everything, or the time is up. After a KeyboardInterrupt `interrupted` is called
    before the step is waited for, and the exception goes on.
    """
    found: list[Record] = []
    lost: Mapping[str, str] = {}
    notes: list[str] = []
    for where in (HOST, ENVIRONMENT):
        own = replace(plan, tasks=tuple(task for task in plan.tasks if task.where == where))
        if not own.tasks:
            continue
        if where == ENVIRONMENT and launch.environment is None:
            why = "the application has no environment (--environment)"
            found += verdicts.unjudged(own.tasks, dict.fromkeys(nodes, why), USER)
            continue
        one = _run(own, where, nodes, launch, environ, interrupted)
        notes += one.notes
        if where == HOST:
            found += one.records
            lost = one.lost
        else:
            found += [record for record in one.records if record.node not in one.lost]
            found += verdicts.unjudged(own.tasks, one.lost)
    return Found(found, lost, notes)


def _run(
    plan: Plan, where: str, nodes: Sequence[str], launch: Launch, environ: Mapping[str, str],
    interrupted: Callable[[], object],
) -> Found:  # fmt: skip
    """Run one step, and return what came of it."""
    leader = Coordinator(plan, nodes, time.monotonic, start_s(len(nodes)), launch.leaf)
    reader = _Reader(leader, nodes, plan.budget_s)
    text = plans.text(plan)
    inside = where == ENVIRONMENT
    with _meeting_place(plan) as secret:
        first = b""
        if inside:
            token, _, shared = secret.get(MEETING_VARIABLE, "").partition(":")
            first = bundle.message(json.dumps({"plan": json.loads(text), "token": token, "shared": shared}).encode())
        # A step of ours is not what the definition's `save` is about.
        own = {"SLURM_PIOLET_VETTING": "1"}
        variables = {**environment(environ, ""), **own} if inside else {**environment(environ, text), **secret}
        process: subprocess.Popen[bytes] | None = None
        bound = _END_S
        try:
            with signals.held():  # or srun is started, and nobody knows of it
                process = subprocess.Popen(
                    launch.words(len(nodes), plan, where),
                    stdin=subprocess.PIPE if inside or secret else subprocess.DEVNULL, stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE, env=variables,
                    start_new_session=True,  # the terminal's Ctrl-C is for us, and we end it
                )  # fmt: skip
            reader.read(process, first)
            if leader.done and not leader.found.lost:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_END_S)
        except OSError as error:
            if process is not None:
                raise
            raise VetError(f"cannot start {launch.srun}: {error.strerror}") from None
        except KeyboardInterrupt:
            bound = _HURRY_S
            interrupted()
            raise
        finally:
            if process is not None:
                _end(process, bound)
    return leader.found


@contextlib.contextmanager
def _meeting_place(plan: Plan) -> Iterator[dict[str, str]]:
    """Yield the variable with what nodes need to meet: a secret, and for process groups a directory; or nothing.

    The directory is made here, where the job was started from: that is the one place that all nodes are likely to see.
    """
    if not meets(plan):
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


class _Reader:
    def __init__(self, leader: Coordinator, nodes: Sequence[str], budget_s: float) -> None:
        self._leader = leader
        self._nodes = list(nodes)
        self._joiner = parts.Joiner()
        # srun may take longer to start its tasks; afterwards the nodes differ by less.
        self._told_s = budget_s + apart_s(len(nodes))
        self._said: dict[str, str] = {}
        self._end = math.inf
        self._last = ""
        self._orders = b""

    def read(self, process: subprocess.Popen[bytes], first: bytes = b"") -> None:
        """Feed the leader until it is done or srun has ended; `first` is what every task is sent."""
        assert process.stdout is not None and process.stderr is not None
        rests = {process.stdout.fileno(): b"", process.stderr.fileno(): b""}
        self._orders = first
        if process.stdin is not None:
            os.set_blocking(process.stdin.fileno(), False)
        with selectors.DefaultSelector() as selector:
            for descriptor in rests:
                selector.register(descriptor, selectors.EVENT_READ)
            self._order(process, selector)
            while not self._leader.done and rests.keys() & selector.get_map().keys():
                wait = max(0.0, min(self._leader.deadline, self._end) - time.monotonic())
                for key, _ in selector.select(wait):
                    if key.fd not in rests:
                        continue
                    data = os.read(key.fd, 65536)
                    if not data:
                        selector.unregister(key.fd)
                    *lines, rest = (rests[key.fd] + data).split(b"\n")
                    rests[key.fd] = rest if len(rest) < _LINE_MAX else b""
                    for line in lines:
                        self._take(line)
                self._leader.advance()
                self._order(process, selector)
                if time.monotonic() >= self._end:
                    # Those that have told everything by themselves may still be meeting: the leader bounds that.
                    self._end = math.inf
                    self._lose("it did not finish within the budget")
        self._lose(self._last or "its task ended without a word")

    def _order(self, process: subprocess.Popen[bytes], selector: selectors.BaseSelector) -> None:
        """Send what the leader has for all nodes; srun copies its standard input to every task."""
        self._orders += b"".join(self._leader.orders())
        if process.stdin is None:
            return
        try:
            self._orders = self._orders[os.write(process.stdin.fileno(), self._orders) :] if self._orders else b""
        except BlockingIOError:
            pass
        except OSError:  # srun is dead, and its output tells
            self._orders = b""
        waiting = process.stdin.fileno() in selector.get_map()
        if self._orders and not waiting:
            selector.register(process.stdin, selectors.EVENT_WRITE)
        elif waiting and not self._orders:
            selector.unregister(process.stdin)

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
        if self._leader.feed(node, whole):
            self._end = min(self._end, time.monotonic() + self._told_s)
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


def _end(process: subprocess.Popen[bytes], bound_s: float) -> None:
    """End srun and its step, unless they have ended; each of two signals has `bound_s` to do it."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            break
        process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(bound_s)
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()
