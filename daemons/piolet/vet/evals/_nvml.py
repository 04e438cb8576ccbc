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
        if any(name.startswith("MIG-") for name in wanted):
            raise Inconclusive("the step has parts of GPUs (MIG), and only whole ones can be judged")
        seen = [name for name in wanted if any(_means(name, gpu) for gpu in found)]
        if len(seen) != len(wanted):
            raise LostError(f"the step has {len(wanted)} GPUs, and NVML shows {len(seen)} of them")
        return [gpu for gpu in found if any(_means(name, gpu) for name in wanted)]

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


def _means(name: str, gpu: Gpu) -> bool:
    """Return whether CUDA_VISIBLE_DEVICES means `gpu` by `name`: its index, or its UUID, which may be cut short."""
    return name == str(gpu.index) or (name.startswith("GPU-") and gpu.uuid.startswith(name))
