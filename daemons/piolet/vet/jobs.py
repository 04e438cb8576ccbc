"""What is known of a job: its nodes, and the vetting that it has had already.

A job is vetted once and not once a step. The vetting is good for a later srun of the same job with the same
protocol, the same nodes and, where evals run inside it, the same environment: for ten minutes, or as long as the
shortest `cache:` of the protocol's evals says. A longer one is the node's to hold, which sees what happens to it. Only
a vetting after which the application could start is kept: whoever repairs something after a refusal wants to be
vetted anew.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from piolet.base import hostlist
from piolet.submission.dependencies import Stamp
from piolet.vet import store
from piolet.vet.failures import VetError
from piolet.vet.runner import records
from piolet.vet.runner.plan import HOST, Plan
from piolet.vet.verdicts import BAD, GOOD, WARNED, Decision

FRESH_S = 600.0
_KEPT_S = 7 * 86400.0
_ASK_S = 30.0
_LOOK_S = 0.02
_DEFINITION = "SLURM_PIOLET_ENVIRONMENT"


@dataclasses.dataclass(frozen=True)
class Kept:
    """A job's vetting and its age in seconds."""

    decision: Decision
    age_s: float


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a job's vetting is kept, what it rests on, and for how long it is good."""

    file: str
    rests: str
    good_for_s: float


def nodes_of(job: int, environ: Mapping[str, str], scontrol: str = "scontrol") -> list[str]:
    """Return the job's nodes in Slurm's order. Raises VetError."""
    text = environ.get("SLURM_JOB_NODELIST") or environ.get("SLURM_NODELIST") or ""
    if not text or environ.get("SLURM_JOB_ID") != str(job):
        text = _ask(job, scontrol)
    nodes = hostlist.expand(text)
    if not nodes:
        raise VetError(f"job {job} has no nodes")
    return nodes


def started(job: int, scontrol: str = "scontrol") -> float:
    """Return when the job began, in seconds of the epoch, to the second. Raises VetError."""
    text = _ask(job, scontrol, "StartTime")
    try:
        return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        raise VetError(f"{scontrol} tells no start of job {job}: {text[:40]}") from None


def _ask(job: int, scontrol: str, field: str = "NodeList") -> str:
    command = [scontrol, "show", "job", "--oneliner", str(job)]
    # The user may want other times to be shown.
    environ = {**os.environ, "SLURM_TIME_FORMAT": "standard"}
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=_ASK_S, check=False, stdin=subprocess.DEVNULL, env=environ
        )
    except subprocess.TimeoutExpired:
        raise VetError(f"{scontrol} did not tell the nodes of job {job} within {_ASK_S:g} s") from None
    except OSError as error:
        raise VetError(f"cannot start {scontrol}: {error.strerror}") from None
    found = re.search(rf"(?<!\S){field}=(\S+)", done.stdout.decode("utf-8", "replace"))
    if done.returncode or found is None:
        why = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or ["it did not say why"]
        raise VetError(f"{scontrol} cannot tell the {field} of job {job}: {why[0]}")
    return found[1]


def place(job: int, plan: Plan, request: str, environ: Mapping[str, str]) -> Place | None:
    """Return where a job's vetting by `plan` is kept, or None: what it rests on cannot be told.

    `request` is the application's environment, '' for none; its definition is where the plugin of --environment has it.
    """
    rests = plan.digest() if all(task.where == HOST for task in plan.tasks) else _inside(plan, request, environ)
    if rests is None:
        return None
    cluster = re.sub(r"[^\w.-]", "_", environ.get("SLURM_CLUSTER_NAME", "")) or "cluster"
    file = os.path.join(store.cache_directory(environ), f"job-{cluster}-{job}-{rests[-12:]}.json")
    return Place(file, rests, good_for_s(plan))


def _inside(plan: Plan, request: str, environ: Mapping[str, str]) -> str | None:
    found: list[Any] = [plan.digest(), request]
    if request:
        try:
            definition = json.loads(environ.get(_DEFINITION, ""))
            if definition["request"] != request:
                return None
            files = [*definition["files"], (definition["image"] or {}).get("path")]
            stamps = [Stamp.of(os.stat(file)) for file in files if file is not None]
        except (ValueError, KeyError, TypeError, AttributeError, OSError):
            return None
        found += [definition, *map(dataclasses.asdict, stamps)]
    return f"sha256:{hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()}"


def keep(where: Place, decision: Decision, now: float) -> None:
    """Keep a vetting, and remove those of long ago. Raises nothing: without it the next srun vets again."""
    value = {
        "digest": where.rests,
        "at": now,
        "state": dict(decision.state),
        "nodes": list(decision.state),
        "reasons": {node: list(reasons) for node, reasons in decision.reasons.items()},
        "records": [dataclasses.asdict(record) for record in decision.records],
        "notes": list(decision.notes),
    }
    with contextlib.suppress(VetError, OSError, ValueError):
        store.write(where.file, value)
        for entry in os.scandir(os.path.dirname(where.file)):
            if entry.name.startswith("job-") and entry.stat().st_mtime < now - _KEPT_S:
                os.unlink(entry.path)


def good_for_s(plan: Plan) -> float:
    """Return how long a job's vetting by `plan` is good, in seconds."""
    return min((min(task.cache_s or FRESH_S, FRESH_S) for task in plan.tasks), default=0.0)


@contextlib.contextmanager
def alone(file: str, seconds: float) -> Iterator[None]:
    """Hold the job's vetting in `file` for this srun: another one waits for it, but no longer than `seconds`.

    Where no lock can be had, several sruns that start at once each vet, which is slow and harms nobody.
    """
    descriptor = -1
    with contextlib.suppress(OSError):
        os.makedirs(os.path.dirname(file), mode=0o700, exist_ok=True)
        descriptor = os.open(f"{file}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    end = time.monotonic() + seconds
    try:
        while descriptor >= 0:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= end:
                    break
                time.sleep(_LOOK_S)
            except OSError:
                break
        yield
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def kept(where: Place, nodes: Sequence[str], now: float, began: Callable[[], float]) -> Kept | None:
    """Return the vetting of `nodes` that is still good, or None.

    `began` tells when the job began: one that was requeued, or that has the number of a job of long ago, is
    another job, and so is one of which that cannot be told. It is asked last, as that takes a call of Slurm.
    """
    value = store.read(where.file)
    if value is None or value.get("digest") != where.rests or value.get("nodes") != list(nodes):
        return None
    at = value.get("at")
    # A clock that was put back must not make a vetting good for ever.
    if not isinstance(at, (int, float)) or not 0 <= now - at < where.good_for_s:
        return None
    decision = _decision(value, nodes)
    try:
        return Kept(decision, now - at) if decision is not None and began() <= at else None
    except VetError:
        return None


def _decision(value: Mapping[str, Any], nodes: Sequence[str]) -> Decision | None:
    try:
        state = {node: value["state"][node] for node in nodes}
        reasons = {node: [str(reason) for reason in value["reasons"][node]] for node in nodes}
        found = [record for row in value["records"] if (record := records.to_record(row)) is not None]
        notes = tuple(str(note) for note in value["notes"])
    except (KeyError, TypeError):
        return None
    return Decision(state, reasons, found, "", notes) if set(state.values()) <= {GOOD, WARNED, BAD} else None


def impossible(command: Sequence[str], environ: Mapping[str, str]) -> str:
    """Return why Slurm can never give the srun `command` its nodes, '' when it can, or does not say."""
    try:
        done = subprocess.run(
            [command[0], "--test-only", *command[1:]], capture_output=True, timeout=_ASK_S, check=False,
            stdin=subprocess.DEVNULL, env=dict(environ),
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""
    said = done.stderr.decode("utf-8", "replace").strip().splitlines()
    return said[-1].rpartition(": ")[2][:300] if done.returncode and said else ""


def cancel(job: int, scancel: str) -> Callable[[], None]:
    """Begin to give an allocation back, and return what waits for its end. Both raise VetError.

    It goes on when this process is killed, and the terminal's Ctrl-C does not reach it.
    """
    lives = f"the allocation may live on: scancel {job}"
    try:
        process = subprocess.Popen(
            [scancel, str(job)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise VetError(f"cannot start {scancel}: {error.strerror}", f"the allocation lives on: scancel {job}") from None

    def wait() -> None:
        try:
            _, said = process.communicate(timeout=_ASK_S)
        except subprocess.TimeoutExpired:
            raise VetError(f"{scancel} {job} did not end within {_ASK_S:g} s", lives) from None
        if process.returncode:
            raise VetError(f"{scancel} {job} failed: {said.decode('utf-8', 'replace').strip()[:300]}", lives)

    return wait
