"""A certificate: what steps made of their GPUs, with the digests of the files that it was computed from.

It says what it is worth. The samples were taken by Piolet's sampler and not by the user, but they lie in files of the
user's, who could have changed them before the certificate was made. So a signature means that the site computed these
figures from these files, and what Slurm's accounting said of the job; not that the files are as they were written.

`facts` reads a data set, which is a user's: it runs with that user's rights. All else is made of its plain values, of
which whoever signs believes that they are some.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from piolet.base.errors import ScoreError
from piolet.samples.dataset import Dataset
from piolet.score.figure import Figure, between, restored, withheld, witnessed
from piolet.score.report.screen import PARTS
from piolet.score.summary import HEADLINES, Summary

FORMAT = "piolet score certificate 1"
_PIECE = 1 << 20
_APART, _APART_S = 1.01, 2.0  # a step cannot have had more of a job than the job had, but for what clocks differ

Facts = Mapping[str, Any]


def facts(summary: Summary, data: Dataset) -> dict[str, Any]:
    """Return what is certified of a step, as plain values. Raises ScoreError: a file cannot be read."""
    view, files = summary.view, digests(data)
    known = summary.score.value is not None
    parts = {name: getattr(summary.score, attribute) or 0.0 for name, attribute, _, _ in PARTS}
    limits = {name: getattr(summary.score, f"by_{name}") for name in ("compute", "memory", "network", "nic")}
    return {
        "job": summary.job,
        "step": summary.step,
        "name": summary.name,
        "label": summary.label,
        "command": summary.command,
        "uids": sorted({int(node.facts.header.get("uid", -1)) for node in data.nodes}),
        "start": view.start / 1e9,
        "end": view.end / 1e9,
        "seconds": summary.seconds,
        "nodes": len(summary.nodes),
        "gpus": len(view.gpus),
        "models": sorted({gpu.model for gpu in view.gpus}),
        "peaks": sorted({gpu.peaks.source for gpu in view.gpus}),
        "gpu_hours": gpu_hours(summary).as_dict(),
        "figures": {name: getattr(summary, name).as_dict() for name in HEADLINES},
        "parts": {name: round(float(part), 6) for name, part in parts.items()} if known else None,
        "limits": {name: round(float(part), 6) for name, part in limits.items()} if known else None,
        "quality": list(summary.quality),
        "sources": list(summary.collectors),
        "simulated": summary.simulated,
        "files": files,
        "digest": hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest(),
    }


def certificate(steps: Sequence[Facts], jobs: Mapping[str, Facts | str], **made: str) -> dict[str, Any]:
    """Return the certificate for JSON.

    `jobs` has what Slurm's accounting says of each job, or why it says nothing; `made` is when, by whom, where, and by
    which release it is made. Raises KeyError, TypeError, ValueError: `steps` are not what `facts` returns.
    """
    hours = [restored(step["gpu_hours"]) for step in steps]
    means = {name: _mean([restored(s["figures"][name]) for s in steps], hours) for name in ("saturation", "rated")}
    return {
        "format": FORMAT,
        "made": dict(made),
        "worth": worth(steps, jobs),
        "total": {"steps": len(steps), "gpu_hours": _sum(hours).as_dict()}
        | {name: figure.as_dict() for name, figure in means.items()},
        "steps": [{**step, "accounting": None if isinstance(job := jobs[step["job"]], str) else job} for step in steps],
    }


def to_json(content: Mapping[str, Any]) -> bytes:
    """Return the bytes that are signed."""
    return (json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n").encode("ascii")


def worth(steps: Sequence[Facts], jobs: Mapping[str, Facts | str]) -> list[str]:
    """Return in sentences what the certificate says, and what it does not."""
    lines = [
        "These figures were computed from the files whose digests are given here.",
        "The files belong to the user, who could have changed them between the end of the step and this certificate: "
        "it says what follows from them, not that they are as they were written.",
    ]
    if any(step["simulated"] for step in steps):
        lines.append("Figures of simulators are among them, which say nothing about real GPUs.")
    if any(step["job"] == "local" or step["uids"] == [-1] for step in steps):
        lines.append("Samples of local commands, and those of GSSR, were taken by a process of the user's.")
    return lines + [_against_slurm(step, jobs[step["job"]]) for step in steps]


def _against_slurm(step: Facts, job: Facts | str) -> str:
    """Return how what Slurm's accounting says of a job stands to what the files say of its step."""
    name, wrong = step["name"], []
    if isinstance(job, str):
        return f"Slurm's accounting did not confirm step {name}: {job}."
    if step["seconds"] > job["seconds"] * _APART + _APART_S:
        wrong.append(f"the job ran for {job['seconds']} s, the step for {step['seconds']:.0f} s")
    if step["gpus"] > job["gpus"]:
        wrong.append(f"the job had {job['gpus']} GPUs, the step {step['gpus']}")
    if step["nodes"] > job["nodes"]:
        wrong.append(f"the job had {job['nodes']} nodes, the step {step['nodes']}")
    if wrong:
        return f"Slurm's accounting contradicts step {name}: {'; '.join(wrong)}."
    return f"Slurm's accounting has a job of {job['user']} in which step {name} has room: its GPUs, nodes and time."


def gpu_hours(summary: Summary) -> Figure:
    """Return the GPU hours of a step: the GPUs that it had, for as long as it ran."""
    hours, size = summary.seconds / 3600, summary.size
    if size.is_withheld:
        return withheld(size.reason)
    if size.value is not None:
        return witnessed(size.value * hours, size.witness)
    low, high = (None if bound is None else bound * hours for bound in (size.low, size.high))
    return between(low, high, size.reason)


def digests(data: Dataset) -> dict[str, str]:
    """Return the SHA-256 of each file with samples, by name. Raises ScoreError."""
    suffixes = (".parquet", ".journal")
    return {
        path.name: _digest(path)
        for path in sorted(data.directory.iterdir())
        if path.name.endswith(suffixes) and not path.name.startswith(".")
    }


def _digest(path: Path) -> str:
    found = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                found.update(piece)
    except OSError as error:
        raise ScoreError(f"cannot read {path}: {error.strerror}") from None
    return found.hexdigest()


def _sum(figures: list[Figure]) -> Figure:
    """Return the sum: a value if all are, else what it is at least and at most."""
    if all(figure.value is not None for figure in figures):
        return witnessed(sum(figure.low or 0.0 for figure in figures), "each step's own witness")
    lows, highs = [figure.low or 0.0 for figure in figures], [figure.high for figure in figures]
    high = None if None in highs else sum(bound or 0.0 for bound in highs)
    return between(sum(lows), high, _some(figures))


def _mean(figures: list[Figure], hours: list[Figure]) -> Figure:
    """Return the mean over GPU hours: a value if all are, else what it is at least and at most."""
    weights = [figure.low or figure.high or 0.0 for figure in hours]
    whole = sum(weights)
    if not whole:
        return withheld("no GPU hours are known")
    low = sum((figure.low or 0.0) * weight for figure, weight in zip(figures, weights, strict=True)) / whole
    if all(figure.value is not None for figure in (*figures, *hours)):
        return witnessed(low, "each step's own witness")
    tops = [1.0 if figure.high is None else figure.high for figure in figures]
    high = sum(top * weight for top, weight in zip(tops, weights, strict=True)) / whole
    return between(low, max(low, high), _some([*figures, *hours]))


def _some(figures: list[Figure]) -> str:
    reasons = list(dict.fromkeys(figure.reason for figure in figures if figure.reason))
    return "; ".join(reasons[:3]) + (f"; and {len(reasons) - 3} more reasons" if len(reasons) > 3 else "")


def accounting_of(found: Any) -> dict[str, Any]:
    """Return what Slurm's accounting says (slurm/accounting.py) as plain values."""
    return asdict(found) | {"gpu_hours": found.gpu_hours}
