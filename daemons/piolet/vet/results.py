"""The result file of a vetting, `vet-<job>.json`: everything that was found, for scripts and for later.

{"version": 1, "job": …, "protocol": {"name", "digest"}, "started": seconds since 1970, "seconds": …,
 "nodes": {NODE: {"state": "good" | "warned" | "bad", "reasons": […]}}, "chosen": […], "abort": …, "notes": […],
 "versions": {"piolet", "python", "kernel"},
 "records": [{"node", "eval", "kind", "outcome", "reason", "measure", "value", "limit", "unit", "seconds",
              "cached", "peer", "details", "better", "effect", "past"}]}
"""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from typing import Any

from piolet.base.errors import VetError
from piolet.vet import store
from piolet.vet.runner import records
from piolet.vet.runner.plan import Plan
from piolet.vet.verdicts import Decision

VERSION = 1


def document(
    plan: Plan, decision: Decision, job: str, started: float, seconds: float, chosen: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the content of the result file."""
    return {
        "version": VERSION,
        "job": job,
        "protocol": {"name": plan.name, "digest": plan.digest()},
        "started": round(started, 3),
        "seconds": round(seconds, 3),
        "nodes": {
            node: {"state": state, "reasons": list(decision.reasons[node])} for node, state in decision.state.items()
        },
        "chosen": list(chosen),
        "abort": decision.abort,
        "notes": list(decision.notes),
        "versions": {"piolet": _version(), "python": platform.python_version(), "kernel": platform.release()},
        "records": [record._asdict() for record in decision.records],
    }


def write(path: str, value: dict[str, Any]) -> None:
    """Write the result file. Raises VetError."""
    store.write(path, value)


def read(path: str) -> dict[str, Any]:
    """Return a result file. Raises VetError: there is none, or it is none of ours."""
    value = store.read(path)
    if value is None and not os.path.exists(path):
        raise VetError(f"the result file {path} does not exist")
    if value is None:
        raise VetError(f"there is no result of a vetting in {path}")
    rows = value.get("records")
    if value.get("version") != VERSION or not isinstance(value.get("nodes"), dict) or not isinstance(rows, list):
        raise VetError(f"{path} is no result of a vetting, or one of another version")
    value["records"] = [one for row in rows if isinstance(row, dict) and (one := records.to_record(row)) is not None]
    return value


def _version() -> str:
    import importlib.metadata  # a tenth of the start-up time, and srun waits

    try:
        return importlib.metadata.version("piolet")
    except importlib.metadata.PackageNotFoundError:
        return ""
