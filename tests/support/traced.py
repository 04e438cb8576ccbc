"""Runs piolet-central or piolet-forward with points at which it can be killed: between two steps, for certain.

    python -c TEXT STATE PROGRAM ARGUMENTS...

STATE is a file of 16 bytes: the number of the point at which to die (-1: none), and of the last one that was passed.
"""

from __future__ import annotations

import functools
import importlib
import mmap
import os
import signal
import struct
import sys
from collections.abc import Callable
from typing import Any

STATE = struct.Struct("qq")
PROGRAMS = {"piolet-central": "piolet.cli.centrald", "piolet-forward": "piolet.cli.forwardd"}
_CENTRAL = (
    "piolet.central.doors:Doors.caller", "piolet.central.intake:arrival", "piolet.central.ledger:Ledger.add",
    "piolet.central.store.writer:Writer.append", "piolet.central.store.writer:_Work.finish",
    "piolet.central.ledger:Judge.written", "piolet.central.ledger:Judge._judge",
    "piolet.central.store.wordings:conclude", "piolet.central.doors:Doors.sign", "piolet.central.saving:Saved.packed",
    "piolet.central.store.states:put",
)  # fmt: skip
_FORWARD = (
    "piolet.events.reader:Reader.read", "piolet.events.batch:pack", "piolet.system.munge:encode",
    "piolet.transport.asking:Asker._exchange", "piolet.system.munge:decode",
    "piolet.forward.acknowledged:store", "piolet.base.files:write_whole", "os:fsync",
)  # fmt: skip
WRAPPED = {"piolet-central": _CENTRAL, "piolet-forward": _FORWARD}
_IMPATIENT = {
    "piolet.forward.forwarder": {"_WAIT_LEAST_S": 0.02, "_WAIT_MOST_S": 0.2},
    "piolet.central.ledger": {"SAVE_EVERY_S": 0.0, "SAVE_SHARE": 0.0},
}


def points(program: str) -> list[str]:
    """Return the points of a program, by number."""
    return [f"{side} {name.partition(':')[2]}" for name in WRAPPED[program] for side in ("before", "after")]


def main(argv: list[str]) -> int:
    """Run a program."""
    path, program, *arguments = argv
    descriptor = os.open(path, os.O_RDWR)
    state = mmap.mmap(descriptor, STATE.size)

    def passed(number: int) -> None:
        wanted, _ = STATE.unpack_from(state)
        struct.pack_into("q", state, 8, number)
        if wanted == number:
            os.kill(os.getpid(), signal.SIGKILL)

    main_of = importlib.import_module(PROGRAMS[program]).main
    if program == "piolet-central":
        importlib.import_module("piolet.central.running")
    for index, name in enumerate(WRAPPED[program]):
        module, _, attribute = name.partition(":")
        holder: Any = importlib.import_module(module)
        *outer, last = attribute.split(".")
        for one in outer:
            holder = getattr(holder, one)
        setattr(holder, last, _around(getattr(holder, last), 2 * index, passed))
    for module, values in _IMPATIENT.items():
        if module in sys.modules:
            for key, value in values.items():
                setattr(sys.modules[module], key, value)
    return int(main_of(arguments))


def _around(function: Callable[..., Any], number: int, passed: Callable[[int], None]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*arguments: Any, **named: Any) -> Any:
        passed(number)
        result = function(*arguments, **named)
        passed(number + 1)
        return result

    return wrapper


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
