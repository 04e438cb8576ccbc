"""torch, if there is one, and the devices of the step. Runs under Python 3.8."""

from __future__ import annotations

import importlib
from typing import Any

from piolet.api import USER, Inconclusive


def load(cuda: bool = True) -> Any:
    """Return the torch module. Raises Inconclusive without it, or without a device when `cuda`."""
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise Inconclusive(f"torch cannot be imported: {str(error).splitlines()[0]}", USER) from None
    if cuda and not torch.cuda.is_available():
        raise Inconclusive("torch sees no CUDA device")
    return torch


def seconds(torch: Any, device: int, work: Any, repeats: int) -> float:
    """Return the shortest time of `work` on a device, by the device's own clock."""
    best = float("inf")
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize(device)
        best = min(best, begin.elapsed_time(end) / 1000)
    return best
