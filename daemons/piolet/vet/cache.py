"""Passed verdicts that are used again, and the past that `baseline: history` compares with.

One file a node and user. A verdict is good for as long as its eval's `cache:` says, and only while nothing has
happened to the node: `stamp` has to be the same, which holds the boot, the drivers, how often links went down,
and the faults in the kernel log. Only what passed is kept.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from piolet.api import PASS
from piolet.base.errors import VetError
from piolet.vet import store
from piolet.vet.evals import _log
from piolet.vet.runner import records
from piolet.vet.runner.plan import Plan, Task
from piolet.vet.runner.records import Record
from piolet.vet.verdicts import FIRST_RUNS

_HISTORY_MAX = 50
_ENTRIES_MAX = 500

_WATCHED = (
    "/proc/sys/kernel/random/boot_id",
    "/sys/module/nvidia/version",
    "/sys/module/cxi_ss1/version",
    "/sys/module/mlx5_core/version",
    "/sys/class/net/*/carrier_down_count",
    "/sys/class/infiniband/*/ports/*/counters/link_downed",
    "/sys/class/infiniband/*/ports/*/state",
    "/sys/class/cxi/*/device/port/link",
)


def stamp(root: str = "", kernel_log: Iterable[str] = ()) -> str:
    """Return a digest that changes with a reboot, a driver, a link that went down, or a fault in the kernel's log."""
    seen = []
    for pattern in _WATCHED:
        for path in sorted(glob.glob(root + pattern)):
            try:
                with open(path, encoding="utf-8", errors="replace") as file:
                    seen.append((path[len(root) :], file.read(4096)))
            except OSError:
                continue
    # Virtual interfaces come and go with containers, which is no link flap.
    seen = [one for one in seen if not _is_virtual(root, one[0])]
    log = list(kernel_log)
    xids = [line for line in log if "NVRM: Xid" in line or ": SXid " in line]
    xids += [event.text for event in _log.node_events(log)]
    return hashlib.sha256(json.dumps([seen, xids]).encode()).hexdigest()[:32]


def _is_virtual(root: str, path: str) -> bool:
    return path.startswith("/sys/class/net/") and not os.path.exists(root + os.path.dirname(path) + "/device")


class Cache:
    """The file of one node. What cannot be read is empty, and what cannot be written is not kept."""

    def __init__(self, path: str, now_stamp: str, clock: Callable[[], float]) -> None:
        self._path = path
        self._stamp = now_stamp
        self._clock = clock
        value = store.read(path) or {}
        passed, history = value.get("passed"), value.get("history")
        self._passed: dict[str, Any] = passed if isinstance(passed, dict) else {}
        self._history: dict[str, Any] = history if isinstance(history, dict) else {}

    def fresh(self, plan: Plan) -> dict[str, Record]:
        """Return the records that are still good, by the digest of their task."""
        found = {}
        for task in plan.tasks:
            record = self._fresh(task)
            if record is not None:
                found[task.digest()] = record
        return found

    def _fresh(self, task: Task) -> Record | None:
        entry = self._passed.get(task.digest())
        if task.cache_s <= 0 or not isinstance(entry, dict) or entry.get("stamp") != self._stamp:
            return None
        at, content = entry.get("at"), entry.get("record")
        if not isinstance(at, (int, float)) or not isinstance(content, dict):
            return None
        # A clock that was put back must not make a verdict good for ever.
        if not 0 <= self._clock() - at < task.cache_s:
            return None
        record = records.to_record(content)
        return record if record is not None and record.outcome == PASS else None

    def past(self, plan: Plan) -> dict[str, list[float]]:
        """Return earlier values by the digest of their task, oldest first."""
        found = {}
        for task in plan.tasks:
            values = self._history.get(task.digest())
            if isinstance(values, list):
                found[task.digest()] = [float(value) for value in values if isinstance(value, (int, float))]
        return found

    def keep(self, plan: Plan, judged: Iterable[Record]) -> None:
        """Remember what passed, and the values; forget what failed. Raises nothing: a cache is a convenience."""
        tasks: Mapping[str, Task] = {task.name: task for task in plan.tasks}
        for record in judged:
            task = tasks.get(record.eval)
            if task is None or record.cached:
                continue
            key = task.digest()
            if record.outcome != PASS:
                self._passed.pop(key, None)
                continue
            if task.cache_s > 0:
                self._passed[key] = {"at": self._clock(), "stamp": self._stamp, "record": record._asdict()}
            if record.value is not None:
                old = self._history.get(key, [])
                # The first runs are the long baseline, against which a slow loss is seen.
                recent = [*old[FIRST_RUNS:], record.value][-(_HISTORY_MAX - FIRST_RUNS) :]
                self._history[key] = [*old[:FIRST_RUNS], *recent]
        for table in (self._passed, self._history):
            while len(table) > _ENTRIES_MAX:
                table.pop(next(iter(table)))
        try:
            store.write(self._path, {"passed": self._passed, "history": self._history})
        except VetError:
            return
