"""One eval in a process of its own: forked, watched, ended.

The child leads a process group, dies with its parent, has nothing on its standard input, and its output goes
into a pipe whose end is kept for the reason of a crash. It runs under Python 3.8.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import math
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from piolet.api import EITHER, INCONCLUSIVE, NODE, USER, Context, Eval, Inconclusive, Verdict
from piolet.vet.runner import loading, records
from piolet.vet.runner.plan import OWN_SCOPE, Task

if TYPE_CHECKING:  # Python 3.8 cannot evaluate it
    Resolve = Callable[[Task], list[str]]
    """Prepares a task's process, and gives the directories in which its requirements are; raises Inconclusive."""

READY = b"R"
END = b"\n"
ANSWER_MAX = 256 * 1024
TAIL_MAX = 4096
_PR_SET_PDEATHSIG = 1


def build(task: Task) -> Eval:
    """Return the eval of `task` with its parameters. Raises Inconclusive."""
    found = loading.load(task.target, task.search)
    kind: Callable[..., Eval] = found
    if not dataclasses.is_dataclass(found):
        if task.parameters:
            raise Inconclusive(f"{task.kind} takes no parameters: it is no dataclass", USER)
        return kind()
    try:
        return kind(**task.parameters)
    except (TypeError, ValueError) as error:
        raise Inconclusive(f"{task.kind} does not take these parameters: {error}", USER) from None


def judge(task: Task, context: Context) -> dict[str, Any]:
    """Return the answer of `task` in this process: the fields of a verdict, and of a record what its class says.

    Whatever is raised makes it inconclusive.
    """
    said: dict[str, Any] = {}
    verdict = _verdict(task, context, said)
    return {**dataclasses.asdict(verdict), **said, "unit": verdict.unit or said.get("unit", "")}


def comparison(task: Task, kind: Eval | type[Eval]) -> dict[str, Any]:
    """Return what the class of `task` says of comparing its values: 'better', 'effect', 'unit'.

    Raises Inconclusive where the task has a baseline and the class does not say how to compare.
    """
    better, effect, unit = kind.better, kind.effect, kind.unit
    known = {"peers": ("higher", "lower", "same"), "history": ("higher", "lower"), "site": ("higher", "lower")}.get(
        task.baseline
    )
    if known is not None:
        if better not in known:
            what = f"says better = {better!r}, and not 'higher' or 'lower'" if better else "does not say what is better"
            raise Inconclusive(f"{task.kind} cannot be compared with {task.baseline}: its class {what}", USER)
        if isinstance(effect, bool) or not isinstance(effect, (int, float)) or not 0 <= effect < math.inf:
            raise Inconclusive(f"{task.kind} cannot be compared with {task.baseline}: its effect is no number", USER)
    fine = isinstance(effect, (int, float)) and math.isfinite(effect)
    return {"better": str(better), "effect": float(effect) if fine else None, "unit": str(unit)}


def _verdict(task: Task, context: Context, said: dict[str, Any]) -> Verdict:
    """Return the verdict, and put into `said` what the class says."""
    try:
        one = build(task)
        _alone(task, one)
        said.update(comparison(task, one))
        answer = one.check(context)
        if not isinstance(answer, Verdict):
            return Verdict(INCONCLUSIVE, f"{task.kind} returned {type(answer).__name__}, not a Verdict", whose=USER)
        return answer
    except Inconclusive as error:
        return Verdict(INCONCLUSIVE, str(error) or "the eval gave no reason", whose=_whose(error))
    except MemoryError:
        return Verdict(INCONCLUSIVE, "there was not enough memory for the check")
    except (Exception, SystemExit) as error:  # noqa: BLE001 - an exception is never a pass
        what = (str(error).strip() or "no message").splitlines()[0][:300]
        whose = USER if isinstance(error, ImportError) else EITHER
        return Verdict(INCONCLUSIVE, f"{type(error).__name__}: {what}", details={"at": _where(error)}, whose=whose)


def _alone(task: Task, one: Eval) -> None:
    """Refuse a class that would meet others, and that srun took for one that judges its node alone: a user's."""
    scope = one.scope_of(task.parameters) if hasattr(one, "scope_of") else "node"
    if task.scope == "node" and scope != "node":
        raise Inconclusive(f"{task.kind} has scope = {scope!r}: {OWN_SCOPE}", USER)


def _whose(error: Inconclusive) -> str:
    """Return whose problem a user's class says it is; what it says wrongly is nothing."""
    whose = getattr(error, "whose", EITHER)
    return whose if whose in (NODE, USER) else EITHER


def start(task: Task, context: Context, resolve: Resolve | None = None) -> tuple[int, int, int]:
    """Fork the child that judges `task`, after `resolve` has seen to its requirements.

    Return its pid and two descriptors that do not block: of its answer, and of what it prints. The answer is
    the byte READY, at which the eval begins, and then one line. It is whole with its line end: what the eval has
    started may hold the pipe open, and nobody can end a process that hangs in a file system.
    """
    answer_end, answer = os.pipe()
    tail_end, tail = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            _run(task, context, resolve, parent, answer, tail)
        finally:
            os._exit(70)
    with contextlib.suppress(OSError):
        os.setpgid(pid, pid)  # both do it, so that it is done when either goes on
    os.close(answer)
    os.close(tail)
    for end in (answer_end, tail_end):
        os.set_blocking(end, False)
    return pid, answer_end, tail_end


def end(pid: int) -> None:
    """Kill the child and what it started, without waiting: one in a hung system call goes when that returns."""
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(OSError):
            kill(pid, signal.SIGKILL)


def die_with(parent: int) -> None:
    """Have the kernel kill this process when `parent` ends; end now if it has."""
    # Not system/linux.py's: that is not sent into images.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)


def _run(task: Task, context: Context, resolve: Resolve | None, parent: int, answer: int, tail: int) -> None:
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGPIPE, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    die_with(parent)
    # A crash is reported by its signal; a core file in the user's directory would be litter.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    nothing = os.open(os.devnull, os.O_RDWR)
    # The answer must not sit on one of the numbers that are written over next.
    answer = _above(answer)
    os.dup2(nothing, 0)
    os.dup2(tail, 1)
    os.dup2(tail, 2)
    _close_others(answer)
    sys.stdout = sys.stderr = open(1, "w", encoding="utf-8", errors="replace", buffering=1, closefd=False)  # noqa: SIM115
    ready, own = False, os.getpid()
    try:
        if resolve is not None:  # an image brings its own
            loading.add_path(resolve(task))
        os.write(answer, READY)
        ready = True
        late = dataclasses.replace(
            context, deadline=min(context.deadline, time.monotonic() + task.timeout_s - _margin(task))
        )
        found = judge(task, late)
    except Inconclusive as error:
        found = dataclasses.asdict(Verdict(INCONCLUSIVE, str(error), whose=_whose(error)))
    if os.getpid() != own:
        os._exit(0)  # the eval has forked, and this is its child: it has no say
    if not ready:
        os.write(answer, READY)
    data = _encode(found) + END
    while data:
        data = data[os.write(answer, data) :]
    os._exit(0)


def _encode(found: dict[str, Any]) -> bytes:
    value = {key: records.clean(one) if isinstance(one, str) else one for key, one in found.items()}
    try:
        data = json.dumps(value, default=str, allow_nan=False).encode()
    except ValueError:
        data = json.dumps({**value, "details": {"left out": "not finite"}}, default=str).encode()
    if len(data) > ANSWER_MAX:
        data = json.dumps({**value, "details": {"left out": "too long"}}, default=str).encode()
    return data


def _above(descriptor: int) -> int:
    import fcntl

    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)


def _close_others(keep: int) -> None:
    """Close what was inherited: a child must not hold a sibling's pipe or the step's socket open."""
    for name in os.listdir("/proc/self/fd"):
        number = int(name)
        if number > 2 and number != keep:
            with contextlib.suppress(OSError):
                os.close(number)


def _where(error: BaseException) -> str:
    """Return the file and line in which an exception was raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else ""


def _margin(task: Task) -> float:
    """Return how long before it is killed an eval's own deadline is: one that looks at it answers in time."""
    return min(0.25, task.timeout_s / 10)
