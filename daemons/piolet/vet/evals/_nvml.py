"""The node's GPUs through nvidia-ml-py, the step's ones only. Runs under Python 3.8.

No library, no driver and no permission are reasons to be inconclusive; a GPU that the driver has lost is a fault
of the node.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from piolet.api import Context, Inconclusive

# nvmlReturn_t: the question cannot be asked here. All others say that the device does not answer as it should.
_INVALID_ARGUMENT, _NOT_SUPPORTED, _NO_PERMISSION, _NOT_FOUND, _NO_FUNCTION = 2, 3, 4, 6, 13
_VERSION_MISMATCH, _DEPRECATED = 25, 26
_ABSENT = (_INVALID_ARGUMENT, _NOT_SUPPORTED, _NO_PERMISSION, _NOT_FOUND, _NO_FUNCTION, _VERSION_MISMATCH, _DEPRECATED)
_WIDE = (2, 3, 4)
"""nvmlValueType_t of 64 bits: unsigned long, unsigned long long, signed long long."""


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
        """Return what a function of NVML says, or None: GPU, driver or library does not have it. Raises LostError."""
        call: Callable[..., Any] | None = getattr(self.lib, function, None)
        if call is None:
            return None
        try:
            return call(*arguments)
        except self.lib.NVMLError as error:
            if error.value in _ABSENT:
                return None
            raise LostError(f"{function}: {error}") from None

    def field(self, gpu: Gpu, number: int) -> int | None:
        """Return the field `number` of a GPU, a whole number, or None: it is not there. Raises LostError."""
        values = self.ask("nvmlDeviceGetFieldValues", gpu.handle, [number])
        if not values or values[0].nvmlReturn != 0:
            return None
        kind = values[0].valueType
        return int(values[0].value.ullVal if kind in _WIDE else values[0].value.uiVal)

    def fabric(self, gpu: Gpu) -> Any:
        """Return the GPU's place in its NVLink fabric (nvmlGpuFabricInfo_v3_t or _v2_t), or None: there is none."""
        for version in ("v3", "v2"):
            made = getattr(self.lib, f"c_nvmlGpuFabricInfo_{version}_t", None)
            info = made() if made is not None else None
            if info is not None and self.ask("nvmlDeviceGetGpuFabricInfoV", gpu.handle, ctypes.byref(info)) is not None:
                return info if info.state else None
        return None


def _means(name: str, gpu: Gpu) -> bool:
    """Return whether CUDA_VISIBLE_DEVICES means `gpu` by `name`: its index, or its UUID, which may be cut short."""
    return name == str(gpu.index) or (name.startswith("GPU-") and gpu.uuid.startswith(name))
