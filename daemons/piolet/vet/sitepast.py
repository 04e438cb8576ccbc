"""What a node's evals measured at first, as the site keeps it: the long baseline, against which a slow loss is seen.

The server of pioletd writes it (an account that no user is), from verdicts to which only root's code came
(origin.py); root hands it to a vetting. A value counts for the same eval with the same parameters on as many processors
and GPUs. Each user gives at most half of the values, since their load and limits are theirs to choose: they can make a
baseline low, and so hide a loss, and can make none high, and so no good node bad. Pure functions.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from piolet.api import INCONCLUSIVE, PASS, USER
from piolet.vet import localise, verdicts
from piolet.vet.runner.plan import Task
from piolet.vet.runner.records import Record

BASELINE = "site"
FACT = "past"
FILE = "past.json"
VALUES_MAX, KEYS_MAX = 20, 500
SIZE_MAX = 512 * 1024


def key(kind: str, parameters: Any, ran_on: Any) -> str:
    """Return the name under which equal measurements stand."""
    text = json.dumps([kind, parameters, ran_on], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def take(table: dict[str, list[list[float]]], uid: int, line: Mapping[str, Any]) -> bool:
    """Add a line of the spool to the table of [uid, value] by key; return whether that changed it."""
    said = line.get("said", {})
    value = said.get("value")
    known = line.get("origin") in ("built-in", "site") and isinstance(line.get("kind"), str)
    good = known and said.get("outcome") == PASS and said.get("cached") is False and "ran_on" in said
    if not good or isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return False
    name = key(line["kind"], said.get("parameters"), said["ran_on"])
    if name not in table and len(table) >= KEYS_MAX:
        return False
    own = table.setdefault(name, [])
    if len(own) >= VALUES_MAX or sum(one[0] == uid for one in own) >= VALUES_MAX // 2:
        return False
    own.append([uid, float(value)])
    return True


def load(text: str) -> dict[str, list[list[float]]]:
    """Return the table that was written as JSON; what is none is empty."""
    try:
        found = json.loads(text)
        return {
            str(name): [[int(uid), float(value)] for uid, value in own if math.isfinite(value)][:VALUES_MAX]
            for name, own in list(found.items())[:KEYS_MAX]
        }
    except (ValueError, TypeError, AttributeError, RecursionError):
        return {}


def against(task: Task, record: Record, kind: str | None, values: Sequence[float]) -> Record:
    """Return the record, made 'fail' where it is worse than the node's first values; `kind` None: a user's class."""
    if record.outcome != PASS or record.cached:
        return record
    better, effect = record.better or task.better, task.effect if record.effect is None else record.effect
    if kind is None or record.value is None or better not in ("higher", "lower"):
        why = "the site keeps no values of it" if kind is None else "it gives no value that can be compared"
        return record._replace(outcome=INCONCLUSIVE, reason=why, whose=USER)
    record = record._replace(past=len(values), usual=median(values) if values else None)
    limit = localise.peer_limit(values, better, effect)
    if limit is None:
        return record
    return verdicts.beyond(record, limit, better, f"of this node's first {len(values)} runs for the site")
