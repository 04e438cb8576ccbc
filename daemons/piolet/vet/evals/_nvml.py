"""The node's GPUs through nvidia-ml-py, the step's ones only. Runs under Python 3.8.

No library, no driver and no permission are reasons to be inconclusive; a GPU that the driver has lost is a fault
of the node.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from piolet.api import Context, Inconclusive


class LostError(Exception):
    """A GPU is there, and does not answer any more."""


@dataclass(frozen=True)
class Gpu:
    """One GPU: its index on the node, and NVML's handle."""

    index: int
    uuid: str
    handle: Any

    def __str__(self) -> str:
        return f"GPU {self.index}"


class Nvml:
    """NVML, opened."""

    def __init__(self) -> None:
        try:
            self.lib: Any = importlib.import_module("pynvml")
        except ImportError:
            raise Inconclusive("nvidia-ml-py is not installed") from None
        try:
            self.lib.nvmlInit()
        except self.lib.NVMLError as error:
            raise Inconclusive(f"NVML cannot be used: {error}") from None

    def gpus(self, context: Context) -> list[Gpu]:
        """Return the step's GPUs. Raises LostError, Inconclusive."""
        lib = self.lib
        found = []
        for index in range(lib.nvmlDeviceGetCount()):
            try:
                handle = lib.nvmlDeviceGetHandleByIndex(index)
                uuid = lib.nvmlDeviceGetUUID(handle)
            except lib.NVMLError as error:
                if error.value == lib.NVML_ERROR_NO_PERMISSION:  # another job's, in a cgroup of its own
                    continue
                raise LostError(f"GPU {index} does not answer: {error}") from None
            found.append(Gpu(index, uuid, handle))
        if context.gpus is None:
            return found
        wanted = set(context.gpus)
        mine = [gpu for gpu in found if gpu.uuid in wanted or str(gpu.index) in wanted]
        if len(mine) != len(wanted):
            raise LostError(f"the step has {len(wanted)} GPUs, and NVML shows {len(mine)} of them")
        return mine

    def ask(self, function: str, *arguments: Any) -> Any:
        """Return what a function of NVML says, or None: this GPU or driver does not have it. Raises LostError."""
        call: Callable[..., Any] = getattr(self.lib, function)
        try:
            return call(*arguments)
        except self.lib.NVMLError as error:
            absent = (
                self.lib.NVML_ERROR_NOT_SUPPORTED,
                self.lib.NVML_ERROR_FUNCTION_NOT_FOUND,
                self.lib.NVML_ERROR_NO_PERMISSION,
            )
            if error.value in absent:
                return None
            raise LostError(f"{function}: {error}") from None
