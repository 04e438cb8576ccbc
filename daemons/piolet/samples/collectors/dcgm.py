"""DCGM: the profiling counters with the timestamps of the engine that read them; works before Hopper, too.

All steps share the engine (engine.py). A step's own group, field groups and watches are removed at its end. Blank
values are missing data.
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass, field
from typing import Any

from piolet.api import Collector, Device, Reading, Target, Unavailable

from ._engine import Engine, EngineError
from .nvml import DEVICE_FILE, is_numbered

_MIB = 1048576.0
PROFILING: tuple[tuple[str, int, float], ...] = (
    ("engine", 1001, 1),
    ("sm", 1002, 1),
    ("occupancy", 1003, 1),
    ("tensor", 1004, 1),
    ("tensor_int", 1013, 1),
    ("tensor_half", 1014, 1),
    ("tensor_double", 1015, 1),
    ("fp64", 1006, 1),
    ("fp32", 1007, 1),
    ("fp16", 1008, 1),
    ("integer", 1016, 1),
    ("dram", 1005, 1),
    ("pcie_tx", 1009, 1),
    ("pcie_rx", 1010, 1),
    ("nvlink_tx", 1011, 1),
    ("nvlink_rx", 1012, 1),
    ("c2c_tx", 1076, 1),
    ("c2c_rx", 1078, 1),
    ("utilisation", 203, 0.01),
    ("power", 155, 1),
)
SLOW: tuple[tuple[str, int, float], ...] = (
    ("memory_used", 252, _MIB),
    ("energy", 156, 0.001),
    ("temperature", 150, 1),
    ("memory_temperature", 140, 1),
    ("clock_sm", 100, 1),
    ("clock_memory", 101, 1),
    ("clock_events", 112, 1),
    ("xid", 230, 1),
)
_POLL_NS = 5 * 10**8
_GPU = 1  # DCGM_FE_GPU
_LIVE = 1  # DCGM_FV_FLAG_LIVE_DATA
_NAME, _NVML_INDEX, _UUID, _MEMORY, _POWER_LIMIT, _MIG_MODE, _XID = 50, 52, 54, 250, 164, 67, 230
_MINOR, _CLOCK_SM_MAX, _CLOCK_MEMORY_MAX, _POWER_LIMIT_DEFAULT = 55, 113, 114, 163
_NO_MIG = "MIG instances are read through GPM"
_REASONS = ("blank", "not found", "not supported", "not permitted")
_INT64_BLANK, _INT32_BLANK, _DOUBLE_BLANK = 0x7FFFFFFFFFFFFFF0, 0x7FFFFFF0, float(2**47)


@dataclass
class _Watch:
    """A field group that is watched."""

    fields: Any
    since: int = 0


@dataclass
class _Rows:
    """The rows of a device that are not complete yet: by tick, the timestamp and the values by place.

    old_xid    the last XID before the step, which DCGM goes on telling of; NaN: not known yet
    """

    first: int = 0
    last: int = 0
    open: dict[int, tuple[int, dict[int, float]]] = field(default_factory=dict)
    slow: dict[int, float] = field(default_factory=dict)
    old_xid: float = math.nan


class Dcgm(Collector):
    """The collector."""

    name = "dcgm"
    text = "DCGM: the profiling counters, read by NVIDIA's engine"
    least = 0.1
    quantities = (*(name for name, _, _ in PROFILING), *(name for name, _, _ in SLOW))

    def __init__(self) -> None:
        super().__init__()
        self._engine: Engine | None = None
        self._ffi: Any = None
        self._lib: Any = None
        self._handle: Any = None
        self._group: Any = None
        self._watches: list[_Watch] = []
        self._places = {number: place for place, (_, number, _) in enumerate((*PROFILING, *SLOW))}
        self._factors = [factor for _, _, factor in (*PROFILING, *SLOW)]
        self._rows: dict[int, _Rows] = {}
        self._index: dict[int, int] = {}
        self._old_xid: dict[int, float] = {}
        self._due = 0
        self._period_us = 0
        self._offset_ns = 0
        self._callback: Any = None

    def open(self, target: Target) -> None:
        """Begin; see Collector."""
        if target.gpus is not None and any(name.startswith("MIG-") for name in target.gpus):
            raise Unavailable(_NO_MIG)
        try:
            self._engine = engine = Engine.join()
            self._ffi, self._lib, self._handle, self._check = engine.ffi, engine.lib, engine.handle, engine.check
            self.source, self.simulated = engine.source, engine.simulated
            chosen = self._find(target.gpus)
            if not chosen:
                raise Unavailable("the step has no GPU")
            self._watch(chosen, target.period)
        except EngineError as error:
            raise Unavailable(str(error)) from None

    def _find(self, wanted: tuple[str, ...] | None) -> list[int]:
        ids, count = self._ffi.new("unsigned int[32]"), self._ffi.new("int *")
        self._check(self._lib.dcgmGetAllDevices(self._handle, ids, count), "dcgmGetAllDevices")
        known: dict[str, tuple[int, Device]] = {}
        for number in ids[0 : count[0]]:
            device, index, minor = self._describe(number)
            known[device.uuid] = known[index] = known[f"{DEVICE_FILE}{minor}"] = (number, device)
        self.facts["gpus"] = count[0]
        if wanted is not None and any(map(is_numbered, wanted)) and any(device.mig for _, device in known.values()):
            raise Unavailable(_NO_MIG)  # the numbers count instances, too: see nvml.py
        if wanted is None:
            wanted = tuple(uuid for uuid in known if uuid.startswith("GPU-"))
        missing = [name for name in wanted if name not in known]
        if missing:
            raise Unavailable(f"DCGM knows no GPU {missing[0]}")
        self.devices = tuple(known[name][1] for name in wanted)
        if any(device.mig for device in self.devices):
            # The counters of the whole GPU would be those of other jobs' instances too.
            raise Unavailable(_NO_MIG)
        return [known[name][0] for name in wanted]

    def _describe(self, number: int) -> tuple[Device, str, str]:
        """Return a device, its index in NVML, and its minor number, '' where that is not told."""
        ffi = self._ffi
        whose = (_NAME, _NVML_INDEX, _UUID, _MEMORY, _POWER_LIMIT)
        wanted = (*whose, _MIG_MODE, _XID, _MINOR, _CLOCK_SM_MAX, _CLOCK_MEMORY_MAX, _POWER_LIMIT_DEFAULT)
        values = ffi.new("value_v2[]", len(wanted))
        for value in values:
            value.version = ffi.sizeof("value_v2") | 2 << 24
        code = self._lib.dcgmEntitiesGetLatestValues(
            self._handle, ffi.new("entity[]", [[_GPU, number]]), 1, list(wanted), len(wanted), _LIVE, values
        )
        self._check(code, "dcgmEntitiesGetLatestValues")
        texts = [ffi.string(v.value.str).decode("utf-8", "replace") if v.type == ord("s") else "" for v in values]
        numbers = [self._number(value)[0] for value in values]
        memory, limit, sm, dram, usual = (0.0 if math.isnan(numbers[i]) else numbers[i] for i in (3, 4, 8, 9, 10))
        device = Device(
            uuid=texts[2],
            name=texts[0],
            memory=int(memory * _MIB),
            power_limit=limit,
            mig=numbers[5] == 1,
            clock_sm_max=sm,
            clock_memory_max=dram,
            power_limit_default=usual,
        )
        self._old_xid[number] = numbers[6]
        index, minor = ("" if math.isnan(numbers[i]) else str(int(numbers[i])) for i in (1, 7))
        return device, index, minor

    def _number(self, value: Any) -> tuple[float, str]:
        """Return the number in a value, or NaN and why there is none."""
        if value.status != 0:
            return math.nan, f"status {value.status}"
        if value.type == ord("d"):
            number = value.value.dbl
            if number < _DOUBLE_BLANK:
                return float(number), ""
            reason = int(min(number - _DOUBLE_BLANK, 15))
        else:
            number = value.value.i64
            if number < _INT64_BLANK and not _INT32_BLANK <= number <= _INT32_BLANK + 15:
                return float(number), ""
            reason = number & 15
        return math.nan, _REASONS[reason] if reason < len(_REASONS) else "blank"

    def _watch(self, numbers: list[int], period: float) -> None:
        ffi, lib, engine = self._ffi, self._lib, self._handle
        self._period_us = round(max(period, self.least) * 1e6)
        self._offset_ns = time.time_ns() - time.monotonic_ns()
        name = f"piolet-{os.getpid()}-{id(self):x}".encode()
        group = ffi.new("handle *")
        self._check(lib.dcgmGroupCreate(engine, 1, name, group), "dcgmGroupCreate")
        self._group = group[0]
        for index, number in enumerate(numbers):
            self._check(lib.dcgmGroupAddEntity(engine, self._group, _GPU, number), "dcgmGroupAddEntity")
            self._index[number] = index
            self._rows[index] = _Rows(old_xid=self._old_xid.get(number, math.nan))
        for suffix, table, every in ((b"-f", PROFILING, self._period_us), (b"-s", SLOW, max(10**6, self._period_us))):
            fields = ffi.new("handle *")
            numbers_of = ffi.new("unsigned short[]", [field_number for _, field_number, _ in table])
            code = lib.dcgmFieldGroupCreate(engine, len(table), numbers_of, name + suffix, fields)
            self._check(code, "dcgmFieldGroupCreate")
            self._watches.append(_Watch(fields[0], time.time_ns() // 1000))
            code = lib.dcgmWatchFields(engine, self._group, fields[0], every, 30.0, 0)
            self._check(code, "dcgmWatchFields")
        self._callback = ffi.callback("enumerate", self._take, error=-1)

    def _take(self, group: int, number: int, values: Any, count: int, _: Any) -> int:
        index = self._index.get(number) if group == _GPU else None
        if index is None:
            return 0
        rows = self._rows[index]
        for i in range(count):
            value = values[i]
            place = self._places.get(value.field)
            if place is None:
                continue
            number_of, reason = self._number(value)
            result = self.blank(self.quantities[place], reason) if reason else number_of * self._factors[place]
            if value.field == _XID:
                result = self._new_xid(rows, result)
            if place >= len(PROFILING):
                rows.slow[place] = result
                continue
            rows.first = rows.first or value.ts
            tick = round((value.ts - rows.first) / self._period_us)
            rows.open.setdefault(tick, (value.ts, {}))[1][place] = result
        return 0

    @staticmethod
    def _new_xid(rows: _Rows, code: float) -> float:
        """Return an XID of the step, 0 for one from before it: the first value, where none was told before."""
        if math.isnan(code):
            return code
        if math.isnan(rows.old_xid):
            rows.old_xid = code
        if code != rows.old_xid:
            rows.old_xid = 0.0  # from here on, even the same code is another error
        return 0.0 if code == rows.old_xid else code

    def read(self, now: int) -> list[Reading]:
        """Return the complete rows; the engine is asked twice a second only, since it keeps the times itself."""
        if now < self._due:
            return []
        self._due = now + _POLL_NS - 10**6
        return self._poll(1)

    def rest(self, now: int) -> list[Reading]:
        """Return all rows that there are by now; see Collector."""
        return self._poll(0)

    def _poll(self, kept: int) -> list[Reading]:
        """Ask the engine, and take out all rows but the `kept` newest of each device, which may not be complete yet."""
        for watch in self._watches:
            following = self._ffi.new("long long *")
            code = self._lib.dcgmGetValuesSince_v2(
                self._handle, self._group, watch.fields, watch.since, following, self._callback, self._ffi.NULL
            )
            self._check(code, "dcgmGetValuesSince_v2")
            watch.since = following[0]
        readings: list[Reading] = []
        for index, rows in self._rows.items():
            readings += self._complete(index, rows, kept)
        return readings

    def _complete(self, index: int, rows: _Rows, kept: int) -> list[Reading]:
        readings = []
        for tick in sorted(rows.open)[: len(rows.open) - kept]:
            stamp, found = rows.open.pop(tick)
            passed = stamp - rows.last if rows.last else self._period_us
            # After a hole a value still is the mean of one period: what was between is not known.
            span = passed if 0 < passed <= 1.5 * self._period_us else self._period_us
            rows.last = stamp
            found.update(rows.slow)
            rows.slow.clear()
            values = tuple(found.get(place, math.nan) for place in range(len(self.quantities)))
            readings.append(Reading(index, stamp * 1000 - self._offset_ns, span / 1e6, values))
        return readings

    def close(self) -> None:
        """End; see Collector."""
        if self._engine is None:
            return
        for watch in self._watches:
            self._lib.dcgmUnwatchFields(self._handle, self._group, watch.fields)
            self._lib.dcgmFieldGroupDestroy(self._handle, watch.fields)
        if self._group is not None:
            self._lib.dcgmGroupDestroy(self._handle, self._group)
        self._engine.leave()
        self._engine, self._group, self._watches = None, None, []
