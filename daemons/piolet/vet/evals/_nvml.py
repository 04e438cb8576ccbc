"""The node's GPUs through nvidia-ml-py, the step's ones only. Runs under Python 3.8.

No library, no driver and no permission are reasons to be inconclusive; a GPU that the driver has lost is a fault
of the node.
"""

from __future__ import annotations

import ctypes
import importlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from piolet.api import EITHER, NODE, USER, Context, Inconclusive

_FILE = "/dev/nvidia"  # and the driver's minor number, which need not be NVML's index
# nvmlReturn_t: the question cannot be asked here. All others say that the device does not answer as it should.
_INVALID_ARGUMENT, _NOT_SUPPORTED, _NO_PERMISSION, _NOT_FOUND, _NO_FUNCTION = 2, 3, 4, 6, 13
_VERSION_MISMATCH, _DEPRECATED = 25, 26
_ABSENT = (_INVALID_ARGUMENT, _NOT_SUPPORTED, _NO_PERMISSION, _NOT_FOUND, _NO_FUNCTION, _VERSION_MISMATCH, _DEPRECATED)
_WIDE = (2, 3, 4)
"""nvmlValueType_t of 64 bits: unsigned long, unsigned long long, signed long long."""


class LostError(Exception):
    """A GPU is there, and does not answer any more; `whose` as in a Verdict."""

    def __init__(self, text: str, whose: str = NODE) -> None:
        super().__init__(text)
        self.whose = whose


class DividedError(Inconclusive):
    """GPUs are divided (MIG), and what Slurm says does not tell which parts the step has: no fault of the node's."""


@dataclass(frozen=True)
class Gpu:
    """One GPU, or a part of one (MIG).

    index    of the GPU on the node
    handle   NVML's, of what the step has: memory and processes are asked of it
    whole    of the whole GPU, whose temperature, memory cells, clocks and links the parts share
    part     the number of the part; None: the GPU is whole
    """

    index: int
    uuid: str
    handle: Any
    whole: Any
    part: int | None = None

    def __str__(self) -> str:
        return f"GPU {self.index}" if self.part is None else f"part {self.part} of GPU {self.index}"


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

    @property
    def simulated(self) -> dict[str, str]:
        """Return what the details of a verdict say of figures that come from a simulator: it names itself."""
        library: Any = getattr(self.lib, "nvmlLib", None)
        try:
            text = ctypes.string_at(ctypes.addressof(ctypes.c_char.in_dll(library, "piolet_simulation")))
        except (ValueError, TypeError, AttributeError):
            return {}
        return {"simulated": text.decode("ascii", "replace")}

    def there(self, context: Context, wholes: Sequence[Gpu]) -> dict[str, int]:
        """Return what the details of a verdict say of how many GPUs the node has, the step's or not.

        The driver's list in /proc does not depend on what the step may use. Where GPUs are divided, it is not said:
        what Slurm counts then are parts.
        """
        if any(self.is_divided(gpu.handle) for gpu in wholes):
            return {}
        try:
            listed = len(os.listdir(context.path("/proc/driver/nvidia/gpus")))
        except OSError:
            listed = 0
        return {"gpus_there": max(listed, self.lib.nvmlDeviceGetCount())}

    def is_divided(self, handle: Any) -> bool:
        """Return whether a GPU is in MIG mode. Raises LostError."""
        mode = self.ask("nvmlDeviceGetMigMode", handle)
        return bool(mode and mode[0])

    def wholes(self) -> list[Gpu]:
        """Return the node's GPUs that this step may use, each as a whole. Raises LostError."""
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
            found.append(Gpu(index, uuid, handle, handle))
        return found

    def gpus(self, context: Context, found: Sequence[Gpu]) -> list[Gpu]:
        """Return the step's GPUs, or parts of GPUs, among `found`. Raises LostError, Inconclusive."""
        if not found:
            if self.lib.nvmlDeviceGetCount():
                raise Inconclusive("the step has no GPU: ask for GPUs, with --gpus", USER)
            raise Inconclusive("there are no GPUs")
        if context.gpus is None:
            return list(found)
        wanted = set(context.gpus)
        parts = [name for name in wanted if name.startswith("MIG-")]
        if parts:
            return sorted((self._part(name, found) for name in parts), key=lambda one: (one.index, one.part or 0))
        if any(name.isdecimal() or name.startswith(_FILE) for name in wanted) and any(
            self.is_divided(gpu.handle) for gpu in found
        ):
            raise DividedError("GPUs are divided (MIG), and numbers do not say which parts the step has; UUIDs would")
        seen = [name for name in wanted if any(self._means(name, gpu) for gpu in found)]
        if len(seen) != len(wanted):
            raise LostError(f"the step has {len(wanted)} GPUs, and NVML shows {len(seen)} of them", EITHER)
        return [gpu for gpu in found if any(self._means(name, gpu) for name in wanted)]

    def _means(self, name: str, gpu: Gpu) -> bool:
        """Return whether `name` is the index, the device file or the UUID, which may be cut short, of `gpu`."""
        if name.startswith(_FILE):
            return name == f"{_FILE}{self.ask('nvmlDeviceGetMinorNumber', gpu.handle)}"
        return name == str(gpu.index) or (name.startswith("GPU-") and gpu.uuid.startswith(name))

    def _part(self, name: str, found: Sequence[Gpu]) -> Gpu:
        """Return the MIG instance with a UUID, as in CUDA_VISIBLE_DEVICES. Raises LostError."""
        lib = self.lib
        try:
            handle = lib.nvmlDeviceGetHandleByUUID(name)
            whole = lib.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)
            number = lib.nvmlDeviceGetGpuInstanceId(handle)
            uuid = lib.nvmlDeviceGetUUID(whole)
        except lib.NVMLError as error:
            raise LostError(
                f"the step has the part {name} of a GPU, and NVML does not show it: {error}", EITHER
            ) from None
        index = next((gpu.index for gpu in found if gpu.uuid == uuid), None)
        if index is None:
            raise LostError(f"the step has the part {name} of a GPU, and NVML does not show that GPU", EITHER)
        return Gpu(index, name, handle, whole, number)

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

    def named(self, gpu: Gpu) -> dict[str, Any]:
        """Return what the details of a verdict say of which GPU it is. Raises LostError."""
        serial = self.ask("nvmlDeviceGetSerial", gpu.whole)
        return {"index": gpu.index, "uuid": gpu.uuid, **({"serial": str(serial)} if serial else {})}

    def field(self, gpu: Gpu, number: int) -> int | None:
        """Return the field `number` of a GPU, a whole number, or None: it is not there. Raises LostError."""
        values = self.ask("nvmlDeviceGetFieldValues", gpu.whole, [number])
        if not values or values[0].nvmlReturn != 0:
            return None
        kind = values[0].valueType
        return int(values[0].value.ullVal if kind in _WIDE else values[0].value.uiVal)

    def fabric(self, gpu: Gpu) -> Any:
        """Return the GPU's place in its NVLink fabric (nvmlGpuFabricInfo_v3_t or _v2_t), or None: there is none."""
        for version in ("v3", "v2"):
            made = getattr(self.lib, f"c_nvmlGpuFabricInfo_{version}_t", None)
            info = made() if made is not None else None
            if info is not None and self.ask("nvmlDeviceGetGpuFabricInfoV", gpu.whole, ctypes.byref(info)) is not None:
                return info if info.state else None
        return None
