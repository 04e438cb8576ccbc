"""What is known of a job in one place, as data: what `piolet job --json` prints, by one schema with a version.

Times are seconds since 1970, spans seconds, shares 0 to 1, None is "not known". `docs/job.schema.json` is made of these
classes (`python -m tools.jobschema`), and a test holds the two together: who takes a field away, or gives one another
meaning, counts VERSION up.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from typing import Annotated, Any

VERSION = 1

# What a job came to, as `piolet why` says first.
KINDS = (
    "node_failure", "gpu_error", "out_of_memory", "time_limit", "not_started", "vetting", "container", "finding",
    "signal", "cancelled", "program", "requeued", "waits", "runs", "ended_well", "unknown",
)  # fmt: skip


@dataclass(frozen=True)
class Reason:
    """Why a job ended as it did: one of several, the most likely one first."""

    kind: Annotated[str, "one of KINDS"]
    sentence: Annotated[str, "the reason in words"]
    evidence: Annotated[tuple[str, ...], "what it rests on, a sentence each"] = ()
    advice: Annotated[str, "what to do, '': nothing"] = ""


@dataclass(frozen=True)
class Environment:
    """What steps ran in, as it was rendered when it was submitted."""

    steps: Annotated[tuple[str, ...], "names of the steps, as 112.0"]
    request: Annotated[str, "what stood after --environment="]
    image: Annotated[str | None, "the image by digest, or its path; null: none, the steps ran on the host"]
    digest: Annotated[str | None, "of the image; null: it is a file of the user's"]
    files: Annotated[tuple[str, ...], "definition files that were merged, base first"]
    definition: Annotated[str, "the definition as a file; values of secrets are in none of it"]
    secrets: Annotated[tuple[str, ...], "names of variables whose values are not kept"]


@dataclass(frozen=True)
class Vetting:
    """A vetting of the job's nodes."""

    protocol: Annotated[str, "the protocol's name"]
    started: Annotated[float | None, "when it began"]
    seconds: Annotated[float | None, "how long it took"]
    good: Annotated[tuple[str, ...], "nodes that were good"]
    warned: Annotated[tuple[str, ...], "nodes that were good with a warning"]
    left_out: Annotated[dict[str, tuple[str, ...]], "nodes that were left out, with the reasons"]
    chosen: Annotated[tuple[str, ...], "nodes that the application got"]
    abort: Annotated[str, "why no application was started, '': one may have been"]
    file: Annotated[str, "the result file, '': this is the central service's record"]


@dataclass(frozen=True)
class Score:
    """What a step made of its GPUs."""

    step: Annotated[str, "the step's run, as 112.0 or 112.0-r1"]
    began: Annotated[float, "when the first sample began"]
    figures: Annotated[
        dict[str, dict[str, Any]], "name -> {value, low, high, witness, reason}, as `piolet score export`"
    ]
    gpus: Annotated[int, "GPUs that were sampled"]
    seconds: Annotated[float, "how long samples came"]
    software: Annotated[tuple[str, ...], "versions of kernel and driver, one for each that nodes had"]
    simulated: Annotated[str, "the mark of simulated figures, '': they are real"]
    advice: Annotated[tuple[str, ...], "what was seen and what to do, a sentence each"]
    directory: Annotated[str, "the data set"]


@dataclass(frozen=True)
class Finding:
    """What a detector found in the data of a step."""

    step: Annotated[str, "the step's run"]
    detector: Annotated[str, "its name and version"]
    node: Annotated[str | None, "the node; null: the step as a whole"]
    subject: Annotated[str | None, "the part of the node"]
    start: Annotated[float | None, "from when"]
    end: Annotated[float | None, "until when"]
    confidence: Annotated[float | None, "that it is there"]
    text: Annotated[str, "one sentence"]
    advice: Annotated[str, "what to do"]


@dataclass(frozen=True)
class Happened:
    """An event of the job, or of one of its nodes while it ran."""

    time: Annotated[float, "when"]
    node: Annotated[str, "where"]
    kind: Annotated[str, "as docs/events.md has it"]
    source: Annotated[str, "who could have made it come true: kernel, root, site or user"]
    severity: Annotated[str, "fatal, warn, info or ''"]
    step: Annotated[str, "of which step, '': of none"]
    subject: Annotated[str, "of which part of the node"]
    text: Annotated[str, "in words"]
    body: Annotated[dict[str, Any], "the record's body"]


@dataclass(frozen=True)
class Step:
    """A step, as Slurm's accounting has it."""

    name: Annotated[str, "0, batch, extern"]
    title: Annotated[str, "its name"]
    state: Annotated[str, "Slurm's word"]
    status: Annotated[int, "exit status"]
    signal: Annotated[int, "signal that ended it, 0: none"]
    nodes: Annotated[tuple[str, ...], "its nodes"]
    start: Annotated[float | None, "when it began"]
    end: Annotated[float | None, "when it ended"]


@dataclass(frozen=True)
class Run:
    """A run of the job; one that was requeued has several."""

    run: Annotated[int, "how often the job was requeued before"]
    state: Annotated[str, "Slurm's word: RUNNING, COMPLETED, FAILED, …"]
    status: Annotated[int, "exit status"]
    signal: Annotated[int, "signal, 0: none"]
    by: Annotated[str, "number of the account that cancelled it, '': nobody, or not known"]
    nodes: Annotated[tuple[str, ...], "nodes of the allocation"]
    start: Annotated[float | None, "when it began"]
    end: Annotated[float | None, "when it ended"]
    steps: Annotated[tuple[Step, ...], "its steps; without accounting there are none"] = ()


@dataclass(frozen=True)
class Mark:
    """What the application said of itself, under one name."""

    name: Annotated[str, "loss, step, tokens_per_second"]
    count: Annotated[int, "how many values"]
    first: Annotated[float | None, "the first value that is a number"]
    last: Annotated[float | None, "the last value that is a number"]
    least: Annotated[float | None, "the least of them"]
    most: Annotated[float | None, "the largest of them"]
    not_numbers: Annotated[int, "values that are NaN or infinite"]
    origin: Annotated[str, "command, output, tensorboard or wandb"]


@dataclass(frozen=True)
class Change:
    """Something that is not as it was in the last good run of the same job."""

    what: Annotated[str, "nodes, image, definition, file, driver, command, or the name of a figure"]
    before: Annotated[str, "as it was"]
    now: Annotated[str, "as it is"]
    text: Annotated[str, "in words; of a figure, whether the intervals say that it changed"]


@dataclass(frozen=True)
class Changes:
    """What changed since the last good run."""

    since: Annotated[str, "that job"]
    ended: Annotated[float | None, "when it ended"]
    changes: Annotated[tuple[Change, ...], "what is not as it was"]
    same: Annotated[tuple[str, ...], "what is"]
    unknown: Annotated[tuple[str, ...], "what cannot be compared, and why"]


@dataclass(frozen=True)
class Job:
    """All of it."""

    version: Annotated[int, "of this schema"]
    job: Annotated[str, "112, 112_1 of an array, 112+1 of a heterogeneous job"]
    number: Annotated[int, "the number that its processes have"]
    step: Annotated[str, "the step that was asked for, '': all"]
    name: Annotated[str, "the job's name"]
    user: Annotated[str, "whose it is"]
    uid: Annotated[int | None, "the number of the account"]
    account: Annotated[str, "Slurm's account"]
    partition: Annotated[str, "the partition"]
    cluster: Annotated[str, "Slurm's ClusterName"]
    command: Annotated[str, "how it was submitted"]
    gpus: Annotated[int | None, "GPUs of the allocation"]
    submit: Annotated[float | None, "when it was submitted"]
    limit: Annotated[float | None, "its time limit; null: none, or not known"]
    waits_for: Annotated[str, "Slurm's reason, while it waits or where it has one"]
    now: Annotated[Run, "the last run"]
    earlier: Annotated[tuple[Run, ...], "runs before it was requeued, the first first"] = ()
    environments: Annotated[tuple[Environment, ...], "of its steps"] = ()
    vettings: Annotated[tuple[Vetting, ...], "of its nodes"] = ()
    scores: Annotated[tuple[Score, ...], "of its steps"] = ()
    findings: Annotated[tuple[Finding, ...], "of its steps"] = ()
    events: Annotated[tuple[Happened, ...], "the first first"] = ()
    marks: Annotated[tuple[Mark, ...], "what the application said of itself"] = ()
    changes: Annotated[Changes | None, "since the last good run; null: there is none"] = None
    why: Annotated[tuple[Reason, ...], "why it ended as it did, the most likely first"] = ()
    files: Annotated[dict[str, str], "what lies where: output, results, data"] = field(default_factory=dict)
    missing: Annotated[tuple[str, ...], "what is not known, and why"] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain values for JSON."""
        return dataclasses.asdict(self)


def schema(kind: type = Job) -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of what `as_dict` makes of a class of these."""
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = {one.name: typing.get_args(hints[one.name])[1] for one in dataclasses.fields(kind)}
    made: dict[str, Any] = {
        "type": "object",
        "description": (kind.__doc__ or "").strip(),
        "properties": {
            name: {**_of(typing.get_args(hints[name])[0]), "description": text} for name, text in fields.items()
        },
        "required": list(fields),
        "additionalProperties": False,
    }
    if kind is Reason:
        made["properties"]["kind"]["enum"] = list(KINDS)
    if kind is Job:
        made["properties"]["version"]["const"] = VERSION
        return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "piolet job --json", **made}
    return made


def _of(hint: Any) -> dict[str, Any]:
    plain = {int: "integer", float: "number", str: "string", bool: "boolean"}
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint in plain:
        return {"type": plain[hint]}
    if origin is types.UnionType:
        return {"anyOf": [_of(one) for one in inner if one is not type(None)] + [{"type": "null"}]}
    if origin is tuple:
        return {"type": "array", "items": _of(inner[0])}
    if origin is dict:
        return {"type": "object", "additionalProperties": {} if inner[1] is Any else _of(inner[1])}
    return schema(hint)
