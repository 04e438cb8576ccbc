"""Are the GPUs sound: memory errors, remapped rows, XID errors, throttling, PCIe and NVLink?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from piolet.api import FAIL, PASS, Context, Eval, Inconclusive, Verdict, parameter
from piolet.vet.evals import _nvml

# Reasons why clocks are lower that are a fault of the node: hardware slowdown, both thermal ones, power brake.
_FAULTS = {0x08: "hardware slowdown", 0x20: "software thermal slowdown", 0x40: "hardware thermal slowdown",
           0x80: "power brake"}  # fmt: skip
# XIDs that an application's own mistake causes; they say nothing of the node.
_APPLICATION_XIDS = (13, 31, 43, 45, 68)
_XID = re.compile(r"NVRM: Xid \(PCI:([0-9a-fA-F:.]+)\): (\d+)")


@dataclass(frozen=True)
class GpuHealth(Eval):
    """Asks NVML for what only a sick GPU has."""

    name = "gpu_health"
    text = "ECC errors, remapped rows, XID errors, throttling, PCIe width, NVLink"
    how = "counters of each GPU; PCIe width against the device's own maximum; XIDs of the kernel log"
    source = "NVML, and the kernel log where pioletd can read it"
    needs = "an NVIDIA driver, nvidia-ml-py"
    loads = frozenset({"gpu"})  # it loads nothing: it must not see what another eval does to a GPU

    max_ecc_corrected: int = parameter(1000, text="corrected errors since the driver was loaded", least=0)
    max_ecc_uncorrected: int = parameter(0, text="uncorrected errors since the driver was loaded", least=0)
    max_rows_uncorrected: int = parameter(0, text="rows remapped for an uncorrected error", least=0)
    pcie_width: bool = parameter(True, text="the PCIe link must be as wide as the device's maximum")
    throttling: bool = parameter(True, text="thermal and hardware slowdown are a fault")
    nvlink: bool = parameter(True, text="every NVLink that the device has must be active")
    xid_ignore: tuple[str, ...] = parameter((), text="XIDs that do not count, besides those of applications")

    def check(self, context: Context) -> Verdict:
        """Name everything that is wrong with every GPU."""
        nvml = _nvml.Nvml()
        wrong: list[str] = []
        try:
            gpus = nvml.gpus(context)
            if not gpus:
                raise Inconclusive("there are no GPUs, or none that this step may use")
            for gpu in gpus:
                wrong += [f"{gpu}: {problem}" for problem in self._problems(nvml, gpu)]
            log = context.facts.get("kernel_log")
            if isinstance(log, (list, tuple)):
                wrong += self._xids(nvml, gpus, log)
        except _nvml.LostError as error:
            wrong.append(str(error))
        details = {"kernel_log": "read" if context.facts.get("kernel_log") is not None else "not readable"}
        return Verdict(FAIL if wrong else PASS, "; ".join(wrong)[:500], "problems", len(wrong), 0, "", details)

    def _problems(self, nvml: _nvml.Nvml, gpu: _nvml.Gpu) -> list[str]:
        return [*self._memory(nvml, gpu), *self._clocks(nvml, gpu), *self._links(nvml, gpu)]

    def _memory(self, nvml: _nvml.Nvml, gpu: _nvml.Gpu) -> list[str]:
        found = []
        for kind, name, limit in (
            (0, "corrected", self.max_ecc_corrected),
            (1, "uncorrected", self.max_ecc_uncorrected),
        ):
            count = nvml.ask("nvmlDeviceGetTotalEccErrors", gpu.handle, kind, 0)
            if count is not None and count > limit:
                found.append(f"{count} {name} ECC errors, {limit} are allowed")
        rows = nvml.ask("nvmlDeviceGetRemappedRows", gpu.handle)
        if rows is not None:
            _, uncorrected, pending, failed = rows
            if failed:
                found.append("a row could not be remapped")
            if pending:
                found.append("a row waits to be remapped: the GPU has to be reset")
            if uncorrected > self.max_rows_uncorrected:
                found.append(f"{uncorrected} rows are remapped for uncorrected errors")
        if nvml.ask("nvmlDeviceGetRetiredPagesPendingStatus", gpu.handle):
            found.append("a page waits to be retired: the GPU has to be reset")
        return found

    def _clocks(self, nvml: _nvml.Nvml, gpu: _nvml.Gpu) -> list[str]:
        reasons = nvml.ask("nvmlDeviceGetCurrentClocksEventReasons", gpu.handle)
        if reasons is None:
            reasons = nvml.ask("nvmlDeviceGetCurrentClocksThrottleReasons", gpu.handle)
        if not self.throttling or reasons is None:
            return []
        return [f"its clocks are lowered: {name}" for bit, name in _FAULTS.items() if reasons & bit]

    def _links(self, nvml: _nvml.Nvml, gpu: _nvml.Gpu) -> list[str]:
        found = []
        width = nvml.ask("nvmlDeviceGetCurrPcieLinkWidth", gpu.handle)
        most = nvml.ask("nvmlDeviceGetMaxPcieLinkWidth", gpu.handle)
        # An idle GPU lowers the generation of its link to save power, never the width.
        if self.pcie_width and width is not None and most is not None and width < most:
            found.append(f"PCIe runs with {width} of {most} lanes")
        down = []
        for link in range(nvml.lib.NVML_NVLINK_MAX_LINKS):
            state = nvml.ask("nvmlDeviceGetNvLinkState", gpu.handle, link)
            if state is None:
                break
            if not state:
                down.append(str(link))
        if self.nvlink and down:
            found.append(f"NVLink {', '.join(down)} is not active")
        return found

    def _xids(self, nvml: _nvml.Nvml, gpus: list[_nvml.Gpu], log: Sequence[str]) -> list[str]:
        ignored = {*_APPLICATION_XIDS, *(int(number) for number in self.xid_ignore if number.isdigit())}
        own = {}
        for gpu in gpus:
            info = nvml.ask("nvmlDeviceGetPciInfo", gpu.handle)
            if info is not None:
                bus = info.busId.decode() if isinstance(info.busId, bytes) else str(info.busId)
                own[bus.lower().rpartition(".")[0][-10:]] = gpu  # dddd:bb:dd; domains have 4 or 8 digits
        found = []
        for line in log:
            match = _XID.search(line)
            gpu_of = own.get(match[1].lower().partition(".")[0][-10:]) if match else None
            if match and gpu_of is not None and int(match[2]) not in ignored:
                found.append(f"{gpu_of}: XID {match[2]} in the kernel log")
        return list(dict.fromkeys(found))
