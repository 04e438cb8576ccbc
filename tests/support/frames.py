"""Records of steps as a node's journal has them, of made figures."""

from __future__ import annotations

from typing import Any

from piolet.events.envelope import Event

BOOT = "0b1c2d3e-0000-4000-8000-000000000000"
CLUSTER = "alps"


def record(node: str, seq: int, kind: str, when: float, epoch: str, **body: Any) -> Event:
    """Return a record of a step; `job`, `step`, `uid`, `boot`, `run` are of the envelope."""
    fields: dict[str, Any] = {"job": 112, "step": "0", "uid": 1000, "run": 0, "boot": BOOT}
    fields |= {name: body.pop(name) for name in list(body) if name in fields}
    return Event(CLUSTER, node, epoch, seq, when, kind, "root", body=body, **fields)


def began(node: str, seq: int, start: float, epoch: str, **more: Any) -> Event:
    """Return the record of a step that began at `start`, and was found 2 s later; its node booted 100 s before."""
    body = {
        "version": 1, "interval": 10, "began": start, "found": start + 2, "up": 102.0, "simulated": "made",
        "devices": [{"uuid": f"GPU-{node}-{gpu}", "name": "H100"} for gpu in range(4)],
        "sources": {"gpu": "", "pm_counters": "there is no /sys/cray"},
    }  # fmt: skip
    return record(node, seq, "observe.step", start + 2, epoch, **body, **more)


def frame(node: str, seq: int, start: float, number: int, epoch: str, **more: Any) -> Event:
    """Return the frame of the 10 s that end at `start` + 10 x (`number` + 1), of 4 GPUs."""
    rows = [[gpu, f"GPU-{node}-{gpu}", 0.5 + gpu / 10, 400.0 + number % 7, 55.0, None] for gpu in range(4)]
    body = {
        "up": 110.0 + 10 * number, "span": 10.0,
        "gpu": {"columns": ["gpu", "uuid", "sm", "power", "temperature", "tensor"], "rows": rows},
        "host": {"columns": ["cpu", "memory", "read"], "rows": [[float(number), 5e9, 123456789]]},
    }  # fmt: skip
    return record(node, seq, "observe.frame", start + 10 * (number + 1), epoch, **body, **more)


def ended(node: str, seq: int, start: float, end: float, epoch: str, **more: Any) -> Event:
    """Return the record of a step that ended."""
    return record(node, seq, "observe.end", end, epoch, up=100.0 + end - start, ended=end, **more)


def whole(node: str, start: float, frames: int, epoch: str, first: int = 1, **more: Any) -> list[Event]:
    """Return all records of a step of so many frames, with numbers from `first` on."""
    made = [began(node, first, start, epoch, **more)]
    made += [frame(node, first + 1 + number, start, number, epoch, **more) for number in range(frames)]
    return [*made, ended(node, first + 1 + frames, start, start + 10 * frames, epoch, **more)]
