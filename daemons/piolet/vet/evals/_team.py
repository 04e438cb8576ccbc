"""Several processes that do the same work at the same moment, each pinned to a processor. Runs under Python 3.8.

Processes and not threads: linear algebra with threads of its own would ignore the step's processors, and first
touch has to happen where the work is done.
"""

from __future__ import annotations

import importlib
import os
import select
import struct
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from piolet.api import Context, Inconclusive

if TYPE_CHECKING:  # Python 3.8 cannot evaluate them
    Round = Callable[[], "float | None"]
    Prepare = Callable[[int], Round]


_ANSWER = struct.Struct("dd")  # of a round: its seconds, and by how much its result is off


def numpy() -> Any:
    """Return the module that members compute with. Raises Inconclusive without it."""
    try:
        return importlib.import_module("numpy")
    except ImportError:
        raise Inconclusive("numpy is not installed") from None


def processors(most: int = 0) -> list[int]:
    """Return the processors of this process, one of each core first, at most `most` (0: all)."""
    mine = sorted(os.sched_getaffinity(0))
    first: list[int] = []
    rest: list[int] = []
    seen = set()
    for number in mine:
        core = _siblings(number)
        (rest if core in seen else first).append(number)
        seen.add(core)
    chosen = first + rest
    return chosen[:most] if most else first


def _siblings(number: int) -> str:
    try:
        with open(f"/sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return str(number)


def rounds(context: Context, where: list[int], prepare: Prepare, count: int) -> list[tuple[float, list[float]]]:
    """Run `count` rounds on the processors `where`: a list of wall time and each member's own time, in seconds.

    `prepare` is called in each process with its number and returns what one round does; that returns by how much its
    result is off, if it can tell. All rounds begin together. Fewer rounds come back when the time is up after the first
    one; Inconclusive when there is none. Raises WrongError: a result is off.
    """
    members = [_start(number, processor, prepare) for number, processor in enumerate(where)]
    found: list[tuple[float, list[float]]] = []
    try:
        _collect(context, members, where)  # ready
        for _ in range(count):
            started = time.monotonic()
            for _, go, _ in members:
                os.write(go, b"g")
            own = _collect(context, members, where)
            found.append((time.monotonic() - started, own))
            if context.remaining() < 1.2 * found[-1][0]:
                break
    except _LateError:
        if not found:
            raise Inconclusive("the first round was not over when the time was up") from None
    finally:
        for pid, go, answers in members:
            os.close(go)
            os.close(answers)
            os.kill(pid, 9)
            os.waitpid(pid, 0)
    return found


class WrongError(Exception):
    """What the core `processor` has computed is off by so much."""

    def __init__(self, processor: int, off: float) -> None:
        super().__init__(f"core {processor} computes wrongly: off by {off:g}")
        self.processor = processor
        self.off = off


class _LateError(Exception):
    """The deadline has come."""


def _collect(context: Context, members: list[tuple[int, int, int]], where: list[int]) -> list[float]:
    own = []
    for processor, (_, _, answers) in zip(where, members):  # noqa: B905 - Python 3.8
        if not select.select([answers], [], [], context.remaining())[0]:
            raise _LateError
        data = os.read(answers, _ANSWER.size)
        if len(data) != _ANSWER.size:
            raise Inconclusive("a process of the measurement died, probably of too little memory")
        seconds, off = _ANSWER.unpack(data)
        if off != 0:  # or it is no number
            raise WrongError(processor, off)
        own.append(seconds)
    return own


def _start(number: int, processor: int, prepare: Prepare) -> tuple[int, int, int]:
    orders, go = os.pipe()
    answers, answer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(orders)
        os.close(answer)
        return pid, go, answers
    try:
        os.close(go)
        os.sched_setaffinity(0, {processor})
        work = prepare(number)
        os.write(answer, _ANSWER.pack(0.0, 0.0))
        while os.read(orders, 1):
            started = time.monotonic()
            off = work() or 0.0
            os.write(answer, _ANSWER.pack(time.monotonic() - started, off))
    finally:
        os._exit(1)
