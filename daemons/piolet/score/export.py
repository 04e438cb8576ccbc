"""A data set for other tools: CSV of all samples, JSON of the summary, OpenMetrics of the summary's figures."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from typing import TextIO

from piolet.api import GPU_QUANTITIES
from piolet.samples.dataset import Dataset
from piolet.score.figure import Figure
from piolet.score.summary import Summary

FORMATS = ("csv", "json", "openmetrics")


def to_csv(data: Dataset, out: TextIO) -> None:
    """Write every sample of every GPU; the units stand in the head, missing values are empty."""
    names = [quantity.name for quantity in GPU_QUANTITIES]
    units = [f"{q.name} [{q.unit}]" if q.unit != "1" else q.name for q in GPU_QUANTITIES]
    writer = csv.writer(out, lineterminator="\n")
    mark = ["simulated"] if data.simulated else []
    writer.writerow(["time [s since 1970]", "span [s]", "node", "gpu", "uuid", *units, *mark])
    for node in data.nodes:
        uuids = [device["uuid"] for device in node.facts.devices]
        for chunk in node.chunks(names):
            columns = [chunk[name] for name in names]
            for row in range(len(chunk["end"])):
                device = int(chunk["device"][row])
                values = ["" if math.isnan(c[row]) else f"{c[row]:.10g}" for c in columns]
                head = [f"{chunk['end'][row] / 1e9:.3f}", f"{chunk['span'][row]:.4g}", node.name, device, uuids[device]]
                writer.writerow([*head, *values, *([data.simulated] if mark else [])])


def to_json(summary: Summary) -> str:
    """Return the summary as JSON."""
    return json.dumps(summary.as_dict(), indent=1, allow_nan=False) + "\n"


def to_openmetrics(summary: Summary) -> str:
    """Return figures of the step and of each GPU in the OpenMetrics text format, version 1.0."""
    return "\n".join(_metrics(summary)) + "\n# EOF\n"


def _metrics(summary: Summary) -> Iterator[str]:
    view, per_gpu = summary.view, summary.view.per_gpu()
    whole = {"job": summary.job, "step": summary.step}
    if summary.simulated:
        whole["simulated"] = summary.simulated
    score, known = summary.score, summary.score.value is not None
    headlines = (
        ("saturation", "ratio", "mean saturation of the step's GPUs", summary.saturation),
        ("rated_saturation", "ratio", "mean saturation of the step's GPUs at their highest clocks", summary.rated),
        ("ofu", "ratio", "mean tensor activity times clock over the highest clock", summary.ofu),
        ("coverage", "ratio", "share of the GPUs' time that is covered by samples", summary.coverage),
        ("energy", "joules", "energy of the step's GPUs", summary.energy),
    )
    step = [each for name, unit, text, figure in headlines for each in _bounds(name, unit, text, figure)]
    step += [
        ("idle_ratio", "share of time in which nothing ran", score.idle if known else None),
        ("narrow_ratio", "share of time lost on SMs without work", score.narrow if known else None),
        ("stalled_ratio", "share of time in which SMs waited", score.stalled if known else None),
        ("throttled_ratio", "share of time lost to clocks below the highest", score.throttled if known else None),
    ]
    for name, text, value in step:
        if value is not None:
            yield from _head(f"piolet_score_{name}", text)
            yield f"piolet_score_{name}{_labels(whole)} {value:.10g}"
    gpu = (
        ("saturation_ratio", "mean saturation", per_gpu),
        ("utilisation_ratio", "mean utilisation", view.means["utilisation"]),
        ("sm_active_ratio", "mean SM activity", view.means["sm"]),
        ("dram_active_ratio", "mean DRAM activity", view.means["dram"]),
        ("tensor_active_ratio", "mean tensor activity", view.means["tensor"]),
        ("power_watts", "mean power", view.means["power"]),
        ("energy_joules", "energy", view.energy),
    )
    for name, text, values in gpu:
        yield from _head(f"piolet_score_gpu_{name}", text)
        for device, value in zip(view.gpus, values, strict=True):
            if not math.isnan(value):
                labels = whole | {"node": device.node, "gpu": str(device.index), "uuid": device.uuid}
                yield f"piolet_score_gpu_{name}{_labels(labels)} {value:.10g}"


def _bounds(name: str, unit: str, text: str, figure: Figure) -> Iterator[tuple[str, str, float | None]]:
    """Yield the value under the figure's name if it is confirmed, else its bounds under names of their own."""
    if figure.value is not None:
        yield f"{name}_{unit}", text, figure.value
        return
    yield f"{name}_least_{unit}", f"{text}, at least", figure.low
    yield f"{name}_most_{unit}", f"{text}, at most", figure.high


def _head(name: str, text: str) -> Iterator[str]:
    yield f"# TYPE {name} gauge"
    if unit := next((unit for unit in ("ratio", "joules", "watts") if name.endswith(f"_{unit}")), ""):
        yield f"# UNIT {name} {unit}"
    yield f"# HELP {name} {text}"


def _labels(labels: dict[str, str]) -> str:
    escaped = (value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") for value in labels.values())
    return "{" + ",".join(f'{name}="{value}"' for name, value in zip(labels, escaped, strict=True)) + "}"
