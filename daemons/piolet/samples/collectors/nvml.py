"""NVML without its profiling counters: utilisation, memory, power. No saturation can be told from it.

Uses nvidia-ml-py. Utilisation and power are read in every sample, what changes slowly once a second; between those
the values are empty, and not counted as missing. XID errors come from NVML's events.
"""

from __future__ import annotations

import ctypes
import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from piolet.api import Collector, Device, Reading, Target, Unavailable

_SLOW_NS = 10**9
_XID = 0x8
_FIELD_MEMORY_TEMPERATURE = 82
DEVICE_FILE = "/dev/nvidia"
# Bytes per second of a lane in one direction, by generation of PCIe, after its encoding (PCI-SIG: 8b/10b, 128b/130b,
# and 242 of 256 bytes of a flit).
LANE = {1: 0.25e9, 2: 0.5e9, 3: 0.985e9, 4: 1.969e9, 5: 3.938e9, 6: 7.563e9}


def is_numbered(name: str) -> bool:
    """Return whether a name in Target is a number that the driver or Slurm counts by, and no UUID."""
    return name.isdecimal() or name.startswith(DEVICE_FILE)


@dataclass
class Watched:
    """A device that is read: its handle, that of the GPU it is a part of, and what it cannot tell.

    name    of the device in Target, and its UUID
    """

    handle: Any
    parent: Any
    instance: int | None = None
    never: dict[str, str] = field(default_factory=dict)
    slow_due: int = 0
    xid: float = 0.0
    last: int = 0
    name: tuple[str, str] = ("", "")


class Nvml(Collector):
    """The collector."""

    name = "nvml"
    text = "NVML: utilisation, memory, power; no saturation"
    least = 0.1
    quantities: ClassVar[tuple[str, ...]] = (
        "utilisation",
        "memory_used",
        "power",
        "energy",
        "temperature",
        "memory_temperature",
        "clock_sm",
        "clock_memory",
        "clock_events",
        "xid",
    )

    def __init__(self) -> None:
        super().__init__()
        self.nvml: Any = None
        self.watched: list[Watched] = []
        self._events: Any = None
        self._fast: tuple[str, ...] = ("utilisation", "power", "energy")
        self._getters: dict[str, Callable[[Watched], float]] = {}

    def open(self, target: Target) -> None:
        """Begin; see Collector."""
        try:
            pynvml: Any = importlib.import_module("pynvml")
        except ImportError:
            raise Unavailable("the Python module nvidia-ml-py is not installed") from None
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError_LibraryNotFound:
            raise Unavailable("libnvidia-ml.so.1 is not there: no NVIDIA driver") from None
        except pynvml.NVMLError as error:
            raise Unavailable(f"NVML does not start: {error}") from None
        self.nvml = pynvml
        self.simulated = _simulated(pynvml.nvmlLib)
        try:
            self.source = f"NVML {pynvml.nvmlSystemGetNVMLVersion()}, driver {pynvml.nvmlSystemGetDriverVersion()}"
            self.watched = self._find(target.gpus)
            self.facts["gpus"] = pynvml.nvmlDeviceGetCount()
        except pynvml.NVMLError as error:
            raise Unavailable(f"NVML does not tell of the GPUs: {error}") from None
        if not self.watched:
            raise Unavailable("the step has no GPU")
        self.devices = tuple(self._describe(watched) for watched in self.watched)
        self._getters = self._table()
        self._watch_events()

    # -- which devices

    def _find(self, wanted: tuple[str, ...] | None) -> list[Watched]:
        if wanted is None:
            return [part for handle in self._wholes() for part in self._parts(handle)]
        # A number then counts what Slurm was told of, which nobody else knows: it would be another job's instance.
        if any(map(is_numbered, wanted)) and any(map(self._is_divided, self._wholes())):
            raise Unavailable("where GPUs are divided (MIG), their numbers do not say which are meant; UUIDs would")
        return [self._by_name(name) for name in wanted]

    def _by_name(self, name: str) -> Watched:
        self.asked = name, name if name.startswith(("GPU-", "MIG-")) else ""
        if name.startswith(DEVICE_FILE):
            handle = self._by_file(name)
            watched = Watched(handle, handle)
        else:
            watched = self._by_index(int(name)) if name.isdecimal() else self._by_uuid(name)
        watched.name, self.asked = self.asked, None
        return watched

    def _by_index(self, index: int) -> Watched:
        handle = self.nvml.nvmlDeviceGetHandleByIndex(index)
        return Watched(handle, handle)

    def _by_file(self, name: str) -> Any:
        for handle in self._wholes():
            try:
                if name == f"{DEVICE_FILE}{self.nvml.nvmlDeviceGetMinorNumber(handle)}":
                    return handle
            except self.nvml.NVMLError:
                continue
        raise Unavailable(f"NVML knows no GPU whose device file is {name}")

    def _wholes(self) -> list[Any]:
        return [self.nvml.nvmlDeviceGetHandleByIndex(index) for index in range(self.nvml.nvmlDeviceGetCount())]

    def _is_divided(self, handle: Any) -> bool:
        try:
            return bool(self.nvml.nvmlDeviceGetMigMode(handle)[0])
        except self.nvml.NVMLError:
            return False

    def _by_uuid(self, uuid: str) -> Watched:
        try:
            handle = self.nvml.nvmlDeviceGetHandleByUUID(uuid)
        except self.nvml.NVMLError_NotFound:
            raise Unavailable(f"NVML knows no GPU {uuid}") from None
        return self._instance(handle) if uuid.startswith("MIG-") else Watched(handle, handle)

    def _instance(self, handle: Any) -> Watched:
        parent = self.nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)
        return Watched(handle, parent, self.nvml.nvmlDeviceGetGpuInstanceId(handle))

    def _parts(self, handle: Any) -> list[Watched]:
        """Return the MIG instances of a GPU, or the GPU itself where MIG is off."""
        if not self._is_divided(handle):
            return [Watched(handle, handle)]
        try:
            count = self.nvml.nvmlDeviceGetMaxMigDeviceCount(handle)
        except self.nvml.NVMLError:
            return [Watched(handle, handle)]
        parts = []
        for index in range(count):
            try:
                parts.append(self._instance(self.nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)))
            except self.nvml.NVMLError:
                continue
        return parts

    def _describe(self, watched: Watched) -> Device:
        nvml = self.nvml
        self.asked = watched.name
        uuid = str(nvml.nvmlDeviceGetUUID(watched.handle))
        self.asked = watched.name = watched.name[0] or uuid, uuid

        def told(get: Callable[[], float]) -> float:
            try:
                return get()
            except nvml.NVMLError:
                return 0

        device = Device(
            uuid,
            nvml.nvmlDeviceGetName(watched.parent),
            int(told(lambda: nvml.nvmlDeviceGetMemoryInfo(watched.handle).total)),
            told(lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(watched.parent) / 1000),
            watched.instance is not None,
            float(told(lambda: nvml.nvmlDeviceGetMaxClockInfo(watched.parent, nvml.NVML_CLOCK_SM))),
            float(told(lambda: nvml.nvmlDeviceGetMaxClockInfo(watched.parent, nvml.NVML_CLOCK_MEM))),
            LANE.get(int(told(lambda: nvml.nvmlDeviceGetMaxPcieLinkGeneration(watched.parent))), 0.0)
            * told(lambda: nvml.nvmlDeviceGetMaxPcieLinkWidth(watched.parent)),
            told(lambda: nvml.nvmlDeviceGetPowerManagementDefaultLimit(watched.parent) / 1000),
        )
        self.asked = None
        return device

    # -- what they tell

    def _table(self) -> dict[str, Callable[[Watched], float]]:
        nvml = self.nvml
        return {
            "utilisation": lambda w: float(nvml.nvmlDeviceGetUtilizationRates(w.handle).gpu / 100),
            "memory_used": lambda w: float(nvml.nvmlDeviceGetMemoryInfo(w.handle).used),
            "power": lambda w: float(nvml.nvmlDeviceGetPowerUsage(w.handle) / 1000),
            "energy": lambda w: float(nvml.nvmlDeviceGetTotalEnergyConsumption(w.handle) / 1000),
            "temperature": lambda w: float(nvml.nvmlDeviceGetTemperature(w.parent, nvml.NVML_TEMPERATURE_GPU)),
            "memory_temperature": self._memory_temperature,
            "clock_sm": lambda w: float(nvml.nvmlDeviceGetClockInfo(w.parent, nvml.NVML_CLOCK_SM)),
            "clock_memory": lambda w: float(nvml.nvmlDeviceGetClockInfo(w.parent, nvml.NVML_CLOCK_MEM)),
            "clock_events": lambda w: float(nvml.nvmlDeviceGetCurrentClocksEventReasons(w.parent)),
            "xid": lambda w: w.xid,
        }

    def _memory_temperature(self, watched: Watched) -> float:
        value = self.nvml.nvmlDeviceGetFieldValues(watched.parent, [_FIELD_MEMORY_TEMPERATURE])[0]
        if value.nvmlReturn != 0:
            raise self.nvml.NVMLError(value.nvmlReturn)
        return float(value.value.uiVal)

    def _watch_events(self) -> None:
        nvml = self.nvml
        try:
            self._events = nvml.nvmlEventSetCreate()
            for watched in self.watched:
                nvml.nvmlDeviceRegisterEvents(watched.parent, _XID, self._events)
            self._take_events(drop=True)  # what was there already is not the step's
        except (nvml.NVMLError, AttributeError):
            for watched in self.watched:
                watched.never["xid"] = "NVML gives no events here"

    def _take_events(self, drop: bool = False) -> None:
        nvml = self.nvml
        for _ in range(64):
            try:
                event = nvml.nvmlEventSetWait_v2(self._events, 0)
            except nvml.NVMLError:
                return
            for watched in self.watched:
                if _same(watched.parent, event.device) and not drop:
                    watched.xid = float(event.eventData)

    def basic(self, watched: Watched, now: int) -> tuple[float, ...]:
        """Return the values of the basic quantities, NaN for those that are not due or missing."""
        slow = now >= watched.slow_due
        if slow:
            watched.slow_due = now + _SLOW_NS
        names = Nvml.quantities
        return tuple(self._value(watched, name) if slow or name in self._fast else math.nan for name in names)

    def _value(self, watched: Watched, name: str) -> float:
        if name in watched.never:
            return self.blank(name, watched.never[name])
        if watched.instance is not None and name in ("power", "energy", "utilisation"):
            watched.never[name] = "not told per MIG instance"
            return self.blank(name, watched.never[name])
        try:
            return self._getters[name](watched)
        except self.nvml.NVMLError as error:
            reason = str(error)
            if error.value in (self.nvml.NVML_ERROR_NOT_SUPPORTED, self.nvml.NVML_ERROR_FUNCTION_NOT_FOUND):
                watched.never[name] = reason
            return self.blank(name, reason)

    def processes(self, device: int) -> set[int]:
        """Return the processes that compute on a device, by its place in `devices`; none where NVML does not say."""
        try:
            told = self.nvml.nvmlDeviceGetComputeRunningProcesses(self.watched[device].handle)
        except self.nvml.NVMLError:
            return set()
        return {int(process.pid) for process in told}

    def begin_read(self, now: int) -> None:
        """Take the events that have come, when something slow is due."""
        if self._events is not None and any(now >= watched.slow_due for watched in self.watched):
            self._take_events()

    def read(self, now: int) -> list[Reading]:
        """Return one reading per device; see Collector."""
        self.begin_read(now)
        readings = []
        for index, watched in enumerate(self.watched):
            self.asked = watched.name
            values = self.basic(watched, now)
            if watched.last:
                readings.append(Reading(index, now, (now - watched.last) / 1e9, values))
            watched.last = now
        self.asked = None
        return readings

    def close(self) -> None:
        """End; see Collector."""
        if self.nvml is None:
            return
        try:
            if self._events is not None:
                self.nvml.nvmlEventSetFree(self._events)
            self.nvml.nvmlShutdown()
        except self.nvml.NVMLError:
            pass  # it is gone already, which is what was wanted


def _same(one: Any, other: Any) -> bool:
    return ctypes.cast(one, ctypes.c_void_p).value == ctypes.cast(other, ctypes.c_void_p).value


def _simulated(library: Any) -> str:
    """Return the name of a simulator, which it exports for this purpose; a real library has no such symbol."""
    try:
        text = ctypes.string_at(ctypes.addressof(ctypes.c_char.in_dll(library, "piolet_simulation")))
    except ValueError:
        return ""
    return text.decode()
