"""An hour of training with a straggler and a slow file system, played in seconds.

The figures are made (tools/incident.py), what is done with them is not: four nodes' journals, one of them cut in two,
come to the store of steps, which makes tables of them; the detectors judge the step as they do at its end; then the
screen and the page are made. No Slurm is needed for it, nor an hour.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from piolet.events.envelope import Event, encode
from piolet.observe import bounded, finishing, jobtext, reading, spool, writing
from piolet.observe.catalogue import Catalogue
from piolet.observe.job import Finding, Job, Mark
from piolet.observe.page import html, track

from tools import incident

NAMED = (f"GPU {incident.SICK_GPU} of {incident.SICK}", "/scratch took")  # by screen and page
_NODES_OWN = 0xB1  # the epoch of its own stream
_TABLES, _BOOT = ("gpu", "host", "io", "net"), "0b1c2d3e-0000-4000-8000-000000000000"


def play(room: Path) -> Path:
    """Have the nodes' journals come to a store below `room`; return the step's directory. Raises PioletError."""
    made = reading.open_step(incident.write(room / "made"))
    seconds = incident.START / 1e9
    catalogue = Catalogue(room)
    try:
        store = spool.Spool(catalogue)
        catalogue.set_jobs({made.meta["job"]: {**made.meta, "end": made.end}}, seconds)
        for node in made.nodes:
            lines = list(journal(made, node))
            store.append([spool.Batch(node, lines, seconds + incident.SECONDS, ahead=0.0, boot=_BOOT)])
        (row,) = catalogue.rows()
        finishing.finish(catalogue, row, seconds + incident.SECONDS + 600)
        directory = catalogue.root / row.path
    finally:
        catalogue.close()
    for table in ("events", "marks"):  # which do not come by the nodes' journals
        writing.write_table(directory, table, made.table(table))
    bounded.keep(directory)
    return directory


def journal(made: reading.StepData, node: str) -> Iterator[spool.Line | spool.Remark]:
    """Yield the records that a node's sampler would have written; one that was restarted says so."""
    devices = made.meta["devices"][node]
    began = incident.START / 1e9
    epoch, seq, last = 0xA1, 0, 0.0  # a restart goes on with the stream

    def line(kind: str, after: float, body: dict[str, Any]) -> spool.Line:
        name = f"{epoch:016x}"
        event = Event(
            "simulated", node, name, seq, began + after, kind, "root", job=int(incident.JOB.job), step="0",
            uid=incident.UID, run=0, boot=_BOOT, body=body,
        )  # fmt: skip
        return spool.Line(
            name, seq, incident.JOB.job, "0", 0, incident.UID, began + after, encode(event), body.get("began"),
            kind == "observe.end",
        )  # fmt: skip

    for after, tables in sorted(frames(made, node).items()):
        if not seq or after - last > 2 * incident.EVERY:
            if seq:
                yield spool.Remark(f"{_NODES_OWN:016x}", 1, began + after - incident.EVERY, "node.start", "")
            seq += 1
            yield line("observe.step", after - incident.EVERY, {
                "version": 1, "interval": incident.EVERY, "began": began, "found": began, "up": 100 + after,
                "devices": [{**device, "by": "process"} for device in devices], "sources": {"dcgm": incident.NO_DCGM},
                "simulated": incident.MARK,
            })  # fmt: skip
        seq, last = seq + 1, after
        yield line("observe.frame", after, {"up": 100 + after, "span": float(incident.EVERY), **tables})
    seq += 1
    yield line("observe.end", incident.SECONDS, {"up": 100.0 + incident.SECONDS, "ended": began + incident.SECONDS})


def frames(made: reading.StepData, node: str) -> dict[float, dict[str, Any]]:
    """Return the tables of each tick of a node by the seconds after the step's start."""
    found: dict[float, dict[str, Any]] = defaultdict(dict)
    for table in _TABLES:
        for row in track.rows_of(made.table(table)):
            if row["node"] == node:
                after = (row["time"] - incident.START) / 1e9
                values = {n: _plain(v) for n, v in row.items() if n not in ("time", "span", "node") and v is not None}
                own = found[after].setdefault(table, {"columns": list(values), "rows": []})
                own["rows"].append([values[name] for name in own["columns"]])
    return found


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def told(directory: Path) -> tuple[str, bytes]:
    """Return what the terminal and what the page say of a step. Raises ObserveError."""
    step = reading.open_step(directory)
    findings = tuple(
        Finding(
            step.name, f"{row['detector']} {row['version']}", row["node"], row["subject"], _seconds(row["start"]),
            _seconds(row["end"]), row["confidence"], row["text"], row["advice"],
        )
        for row in track.rows_of(step.table("findings"))
    )  # fmt: skip
    job: Job = dataclasses.replace(incident.JOB, findings=findings, marks=_marks(step))
    return "\n".join(jobtext.whole(job)), html.render(step, job)


def _marks(step: reading.StepData) -> tuple[Mark, ...]:
    values: dict[str, list[float]] = defaultdict(list)
    for row in track.rows_of(step.table("marks")):
        values[row["name"]].append(row["value"])
    return tuple(Mark(n, len(v), v[0], v[-1], min(v), max(v), 0, "output") for n, v in values.items())


def _seconds(time_: int | None) -> float | None:
    return None if time_ is None else time_ / 1e9
