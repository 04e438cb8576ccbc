"""Are the GPUs sound: memory, XID errors, clocks, power limit, fabric, PCIe and NVLink?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from piolet.api import FAIL, INCONCLUSIVE, NODE, PASS, Context, Eval, Inconclusive, Verdict, parameter
from piolet.vet.evals import _clocks, _files, _log, _nvlinks, _nvml, _severities

_LOW_POWER, _LOWERED_POWER = 0.5, 0.9
_FIELD_MEMORY_TEMPERATURE, _FIELD_RECOVERY = 82, 230
_THRESHOLD_MEMORY = 2
_RESET = "reset"
_RECOVERED_S = 600.0
"""So long after an error that asks for a reset, a driver that asks for nothing has had it."""
_HOUR = 3600.0


@dataclass
class _Found:
    """What came out so far: by severity, and what each GPU answered."""

    wrong: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    checked: dict[str, list[str]] = field(default_factory=dict)
    judged_by: list[dict[str, str]] = field(default_factory=list)
    gpus: list[dict[str, Any]] = field(default_factory=list)

    def add(self, severity: str, text: str, row: _severities.Severity | None = None) -> None:
        if severity == _severities.IGNORE:
            return
        (self.wrong if severity == _severities.FAIL else self.warnings).append(text)
        if row is not None and row.told() not in self.judged_by:
            self.judged_by.append(row.told())

    def nvml(self, gpu: _nvml.Gpu, code: str, more: str = "") -> None:
        row = _severities.find("nvml", code)
        self.add(row.severity, f"{gpu}: {row.text}{more}", row)


@dataclass(frozen=True)
class GpuHealth(Eval):
    """Asks NVML and the kernel's log for what only a sick GPU has."""

    name = "gpu_health"
    text = "memory errors, XID errors, clocks, power limit, fabric, PCIe width, NVLink"
    how = "each GPU against what it, its board and equal GPUs say; the kernel log since each GPU's reset"
    source = "NVML, and the kernel log where pioletd can read it; severities by NVIDIA's Xid catalogue"
    needs = "an NVIDIA driver, nvidia-ml-py"
    loads = frozenset({"gpu"})  # it loads nothing: it must not see what another eval does to a GPU

    max_ecc_corrected_rate: float = parameter(100.0, text="corrected errors; more is a warning", unit="1/h", least=0)
    max_ecc_uncorrected: int = parameter(0, text="uncorrected errors since the driver was loaded", least=0)
    max_memory_temp: float = parameter(0.0, text="of its memory; 0: what the GPU says, or 95", unit="degC", least=0)
    min_power_limit: float = parameter(
        _LOW_POWER, text="the least power limit, of the board's default", unit="0..1", least=0
    )
    pcie_width: bool = parameter(True, text="the PCIe link must be as wide as the device's maximum")
    throttling: bool = parameter(True, text="thermal and hardware slowdown, and clocks that are stuck, are a fault")
    nvlink: bool = parameter(True, text="the NVLinks that the board has must be active")
    nvlinks: int = parameter(0, text="how many NVLinks must be active; 0: what the board has", least=0)
    fabric: bool = parameter(
        True, text="a GPU with an NVLink fabric must be registered with it, and the fabric healthy"
    )
    xid_ignore: tuple[str, ...] = parameter((), text="XIDs that do not count, besides those of applications")
    xid_warn_age: float = parameter(86400.0, text="how long an XID that is a warning counts", unit="s", least=0)

    def check(self, context: Context) -> Verdict:
        """Name everything that is wrong with every GPU; what is no fault but worth a look is a warning."""
        nvml = _nvml.Nvml()
        found = _Found()
        log = _log.lines(context)
        more: dict[str, int] = {}
        whose = NODE
        try:
            all_of_node = nvml.wholes()
            more = nvml.there(context, all_of_node)
            gpus = _wholes(nvml.gpus(context, all_of_node), all_of_node)
            for gpu in gpus:
                found.gpus.append(nvml.named(gpu))
                found.checked[str(gpu)] = self._one(nvml, gpu, found, _uptime(context, log))
            self._links(nvml, gpus, found)
            self._events(nvml, gpus, log, found)
        except _nvml.DividedError as error:
            return Verdict(INCONCLUSIVE, str(error), details={**nvml.simulated, "divided": True})
        except _nvml.LostError as error:
            whose = whose if found.wrong else error.whose
            found.wrong.append(str(error))
        details = {
            **nvml.simulated,
            **more,
            "kernel_log": "not readable" if log is None else "read",
            "checked": found.checked,
            "judged_by": found.judged_by,
            "gpus": found.gpus,
        }
        if found.wrong:
            text = "; ".join(found.wrong + found.warnings)[:500]
            return Verdict(FAIL, text, "problems", len(found.wrong), 0, "", details, whose)
        mute = [name for name, answers in found.checked.items() if not answers]
        if mute:
            raise Inconclusive(f"nothing was checked: {', '.join(mute)} answers no question of NVML's")
        return Verdict(PASS, "; ".join(found.warnings)[:500], "problems", 0, 0, "", details)

    def _one(self, nvml: _nvml.Nvml, gpu: _nvml.Gpu, found: _Found, up_s: float | None) -> list[str]:
        """Look at one GPU and return what it answered."""
        return [
            name
            for name, answered in (
                ("ecc", self._ecc(nvml, gpu, found, up_s)),
                ("rows", _rows(nvml, gpu, found)),
                ("clocks", self._clocks(nvml, gpu, found)),
                ("memory temperature", self._memory_temperature(nvml, gpu, found)),
                ("power limit", self._power_limit(nvml, gpu, found)),
                ("fabric", self._fabric(nvml, gpu, found)),
                ("pcie", self._pcie(nvml, gpu, found)),
            )
            if answered
        ]

    def _ecc(self, nvml: _nvml.Nvml, gpu: _nvml.Gpu, found: _Found, up_s: float | None) -> bool:
        corrected = nvml.ask("nvmlDeviceGetTotalEccErrors", gpu.handle, 0, 0)
        uncorrected = nvml.ask("nvmlDeviceGetTotalEccErrors", gpu.handle, 1, 0)
        if uncorrected is not None and uncorrected > self.max_ecc_uncorrected:
            found.nvml(gpu, "ecc_uncorrected", f": {uncorrected}, {self.max_ecc_uncorrected} are allowed")
        # The counters begin with the driver. Less than an hour of it is no time to tell a rate from.
        rate = corrected / (max(up_s, _HOUR) / _HOUR) if corrected is not None and up_s is not None else None
        if rate is not None and rate > self.max_ecc_corrected_rate:
            limit = f"{self.max_ecc_corrected_rate:g}"
            found.nvml(gpu, "ecc_corrected", f": {corrected}, {rate:.4g} an hour, {limit} are allowed")
        return corrected is not None or uncorrected is not None

    def _clocks(self, nvml: _nvml.Nvml, gpu: _nvml.Gpu, found: _Found) -> bool:
        reasons = _clocks.reasons(nvml, gpu)
        if self.throttling and reasons is not None:
            for code, more in _clocks.problems(nvml, gpu, reasons):
                found.nvml(gpu, code, more)
        return reasons is not None

    def _memory_temperature(self, nvml: _nvml.Nvml, gpu: _nvml.Gpu, found: _Found) -> bool:
        degrees = nvml.field(gpu, _FIELD_MEMORY_TEMPERATURE)
        if not degrees:  # no memory is at 0 degrees: the sensor is not there
            return False
        limit = self.max_memory_temp or nvml.ask("nvmlDeviceGetTemperatureThreshold", gpu.handle, _THRESHOLD_MEMORY)
        limit = limit or _MEMORY_DEGREES
        if degrees > limit:
            found.nvml(gpu, "memory_temperature", f": {degrees} degC, {limit:g} are allowed")
        return True

    def _power_limit(self, nvml: _nvml.Nvml, gpu: _nvml.Gpu, found: _Found) -> bool:
        limit = nvml.ask("nvmlDeviceGetEnforcedPowerLimit", gpu.handle)
        usual = nvml.ask("nvmlDeviceGetPowerManagementDefaultLimit", gpu.handle)
        if not limit or not usual:
            return False
        if limit < usual * _LOWERED_POWER:
            code = "power_limit_low" if limit < usual * self.min_power_limit else "power_limit_lowered"
            found.nvml(gpu, code, f": {limit / 1000:.0f} of {usual / 1000:.0f} W")
        return True

    def _fabric(self, nvml: _nvml.Nvml, gpu: _nvml.Gpu, found: _Found) -> bool:
        info = nvml.fabric(gpu)
        if info is None or not self.fabric:
            return False
        if info.state != _FABRIC_COMPLETED:
            found.nvml(gpu, "fabric_state", f" ({_FABRIC_STATES.get(info.state, f'state {info.state}')})")
            return True
        if info.status != 0:
            found.nvml(gpu, "fabric_status", f" ({nvml.lib.NVMLError(info.status)})")
        wrong = [text for text, shift, bits, bad in _FABRIC_MASK if (info.healthMask >> shift & bits) in bad]
        summary = getattr(info, "healthSummary", 0)
        if wrong or summary == _FABRIC_UNHEALTHY:
            found.nvml(gpu, "fabric_unhealthy", f" ({', '.join(wrong) or 'no reason is given'})")
        elif summary == _FABRIC_LIMITED:
            found.nvml(gpu, "fabric_limited")
        return True

    def _pcie(self, nvml: _nvml.Nvml, gpu: _nvml.Gpu, found: _Found) -> bool:
        width = nvml.ask("nvmlDeviceGetCurrPcieLinkWidth", gpu.handle)
        most = nvml.ask("nvmlDeviceGetMaxPcieLinkWidth", gpu.handle)
        # An idle GPU lowers the generation of its link to save power, never the width.
        if self.pcie_width and width is not None and most is not None and width < most:
            found.add(_severities.FAIL, f"{gpu}: PCIe runs with {width} of {most} lanes")
        return width is not None and most is not None

    def _links(self, nvml: _nvml.Nvml, gpus: Sequence[_nvml.Gpu], found: _Found) -> None:
        # A divided GPU does not use its links.
        gpus = [gpu for gpu in gpus if not nvml.is_divided(gpu.handle)]
        told = [_links_of(nvml, gpu) for gpu in gpus]
        for gpu in gpus:
            links = next(links for links in told if links.index == gpu.index)
            if links.up:
                found.checked[str(gpu)].append(f"nvlink: {links.count} of {len(links.up)} active")
            problem = _nvlinks.problem(links, told, self.nvlinks) if self.nvlink else ""
            if problem:
                found.add(_severities.FAIL, f"{gpu}: {problem}")

    def _events(
        self, nvml: _nvml.Nvml, gpus: Sequence[_nvml.Gpu], log: Sequence[str] | None, found: _Found
    ) -> None:  # fmt: skip
        own: dict[str, _nvml.Gpu] = {}
        quiet: set[int] = set()
        for gpu in gpus:
            info = nvml.ask("nvmlDeviceGetPciInfo", gpu.handle)
            if info is not None:
                bus = info.busId.decode() if isinstance(info.busId, bytes) else str(info.busId)
                own[_log.address(bus)] = gpu
            action = nvml.field(gpu, _FIELD_RECOVERY)
            if action:
                row = _severities.find("xid", "154", f"0x{action:x}")
                found.add(row.severity, f"{gpu}: {row.text}", row)
            elif action == 0:
                quiet.add(gpu.index)
        ignored = {f"XID {number}" for number in self.xid_ignore}
        said: dict[str, tuple[str, _severities.Severity]] = {}
        for event in _log.gpu_events(list(log or ())):
            gpu_of = own.get(event.device)
            if (event.device and gpu_of is None) or event.code in ignored:
                continue
            severity = event.row.severity
            # A driver that tells of the recovery that a GPU needs, and asks for none, has had the reset.
            recovered = gpu_of is not None and gpu_of.index in quiet
            if recovered and event.row.action == _RESET and event.age is not None and event.age > _RECOVERED_S:
                severity = _severities.WARN
            if severity == _severities.WARN and event.age is not None and event.age > self.xid_warn_age:
                continue
            name = f"{gpu_of}: {event.code}" if gpu_of is not None else event.code
            said[f"{severity} {name}"] = (f"{name}, {event.row.text}, {_log.ago(event.age)}", event.row)
        for key, (text, row) in said.items():
            found.add(key.partition(" ")[0], text, row)


_MEMORY_DEGREES = 95.0
"""Where a GPU does not say: the limit that nvidia-smi -q shows for the HBM of an A100 (Memory Max Operating Temp)."""
_FABRIC_COMPLETED, _FABRIC_UNHEALTHY, _FABRIC_LIMITED = 3, 2, 3
_FABRIC_STATES = {1: "not started", 2: "in progress"}
_FABRIC_MASK = (
    ("degraded bandwidth", 0, 0x3, (1,)),
    ("routes are unhealthy", 4, 0x3, (1,)),
    ("recovering from access timeouts", 6, 0x3, (1,)),
    ("incorrect configuration", 8, 0xF, tuple(range(2, 16))),
)
"""(what, shift, bits, values that are bad): NVML_GPU_FABRIC_HEALTH_MASK_*."""


def _wholes(gpus: Sequence[_nvml.Gpu], among: Sequence[_nvml.Gpu]) -> list[_nvml.Gpu]:
    """Return the GPUs of which `gpus` are, or are parts: parts share their cells, clocks, power and bus."""
    wanted = {gpu.index for gpu in gpus}
    return [gpu for gpu in among if gpu.index in wanted]


def _rows(nvml: _nvml.Nvml, gpu: _nvml.Gpu, found: _Found) -> bool:
    rows = nvml.ask("nvmlDeviceGetRemappedRows", gpu.handle)
    pages = nvml.ask("nvmlDeviceGetRetiredPagesPendingStatus", gpu.handle)
    if rows is not None:
        _, uncorrected, pending, failed = rows
        if failed:
            found.nvml(gpu, "rows_failed")
        if pending:
            found.nvml(gpu, "rows_pending")
        elif uncorrected:
            found.nvml(gpu, "rows_remapped", f": {uncorrected}")
    if pages:
        found.nvml(gpu, "pages_pending")
    return rows is not None or pages is not None


def _links_of(nvml: _nvml.Nvml, gpu: _nvml.Gpu) -> _nvlinks.Links:
    states = (nvml.ask("nvmlDeviceGetNvLinkState", gpu.handle, link) for link in range(nvml.lib.NVML_NVLINK_MAX_LINKS))
    product = nvml.ask("nvmlDeviceGetName", gpu.handle) or ""
    name = product.decode("utf-8", "replace") if isinstance(product, bytes) else str(product)
    up = tuple(bool(state) for state in states if state is not None)
    return _nvlinks.Links(gpu.index, name, nvml.fabric(gpu) is not None, up)


def _uptime(context: Context, log: Sequence[str] | None) -> float | None:
    """Return for how long the driver may have counted, in seconds: since it was loaded, else since the boot."""
    loaded = _log.loaded_ago(list(log or ()))
    if loaded is not None:
        return loaded
    try:
        return float((_files.text(context.path("/proc/uptime")) or "").split()[0])
    except (IndexError, ValueError):
        return None
