"""Journals of a sampler's, made by tests: of two GPUs of node n1 in step 112.0, unless a test says otherwise."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from piolet.api import GPU_QUANTITIES, HOST_QUANTITIES, Device, Reading
from piolet.samples import journal
from piolet.samples.journal import Packer, json_frame

GPU = [quantity.name for quantity in GPU_QUANTITIES]
HOST = [quantity.name for quantity in HOST_QUANTITIES]
ORIGIN = 1_790_000_000_000_000_000
ZERO = dict.fromkeys(("engine", "sm", "tensor", "fp64", "fp32", "fp16", "dram"), 0.0)


def header(devices: int = 2, **more: Any) -> bytes:
    device = asdict(Device("", "NVIDIA H100", 80_000_000_000))
    said = {
        "version": journal.VERSION, "job": "112", "step": "0", "node": "n1", "nodes": 1, "restarts": 0, "uid": 1500,
        "label": "", "command": "", "period": 0.1, "start": 0, "origin": ORIGIN, "allocated": devices,
        "gpu_columns": GPU, "host_columns": HOST, "not_used": {},
        "simulated": "scripted GPUs",
        "collectors": [{"name": "gpm", "source": "x", "period": 0.1}],
        "devices": [{**device, "uuid": f"GPU-{at}"} for at in range(devices)],
    }  # fmt: skip
    return json_frame("H", {**said, **more})


def samples(kind: str, device: int, seconds: float, **values: float) -> bytes:
    names = GPU if kind == "G" else HOST
    packer = Packer(kind, names)
    reading = Reading(device, int(seconds * 1e9), 0.1, tuple(values.values()))
    return packer.frame([packer.pack(reading, packer.places(tuple(values)))])


def write(directory: Path, *frames: bytes, node: str = "n1") -> Path:
    directory.mkdir(exist_ok=True)
    path = directory / f"{node}{journal.SUFFIX}"
    path.write_bytes(b"".join(frames))
    return path


def busy(device: int, seconds: float, tensor: float, **more: float) -> bytes:
    return samples("G", device, seconds, **{**ZERO, "engine": 1.0, "sm": 1.0, "tensor": tensor, **more})
