"""Are the GPUs there, cool, empty, and the step's alone?"""

from __future__ import annotations

import os
from dataclasses import dataclass

from piolet.api import EITHER, FAIL, INCONCLUSIVE, NODE, Context, Eval, Inconclusive, Verdict, at_most, parameter
from piolet.vet.evals import _nvml


@dataclass(frozen=True)
class Gpu(Eval):
    """Asks NVML for every GPU of the step."""

    name = "gpu"
    text = "count, temperature, used memory and foreign processes of the GPUs"
    how = "one reading of each GPU; memory that the driver reserves for itself does not count as used"
    source = "NVML"
    needs = "an NVIDIA driver, nvidia-ml-py"
    loads = frozenset({"gpu"})  # it loads nothing: it must not see what another eval does to a GPU
    unit = "degC"
    better = "lower"

    count: int = parameter(0, text="how many GPUs there must be; 0: at least one", least=0)
    max_temp: float = parameter(90.0, text="the highest temperature", unit="degC", least=0)
    max_used_memory: float = parameter(0.05, text="the most of a GPU's memory that may be used", unit="0..1", least=0)
    max_processes: int = parameter(0, text="processes that may be on a GPU already", least=0)

    def check(self, context: Context) -> Verdict:
        """Name every GPU that is wrong."""
        nvml = _nvml.Nvml()
        try:
            wholes = nvml.wholes()
            more = {**nvml.simulated, **nvml.there(context, wholes)}
            gpus = nvml.gpus(context, wholes)
            if self.count and len(gpus) != self.count:
                text = f"the step has {len(gpus)} GPUs, not {self.count}"
                return Verdict(FAIL, text, "GPUs", len(gpus), self.count, details=more)
            wrong, hottest, devices, foreign = self._look(nvml, gpus)
        except _nvml.DividedError as error:
            return Verdict(INCONCLUSIVE, str(error), details={**nvml.simulated, "divided": True})
        except _nvml.LostError as error:
            return Verdict(FAIL, str(error), whose=error.whose)
        mute = [f"GPU {one['index']}" for one in devices if one["temperature"] is None]
        if mute and not wrong:
            raise Inconclusive(f"nothing was checked: {', '.join(mute)} tells no temperature")
        if hottest is None:
            return Verdict(FAIL, "; ".join(wrong)[:500], details={**more, "gpus": devices})
        verdict = at_most("temperature", hottest, self.max_temp, "degC", **more, gpus=devices)
        if not wrong:
            return verdict
        text, whose = "; ".join(wrong)[:500], NODE if foreign else EITHER
        return Verdict(FAIL, text, "temperature", hottest, self.max_temp, "degC", verdict.details, whose)

    def _look(
        self, nvml: _nvml.Nvml, gpus: list[_nvml.Gpu]
    ) -> tuple[list[str], float | None, list[dict[str, object]], bool]:
        """Return what is wrong, the highest temperature, what each told, and whether others use the GPUs."""
        wrong: list[str] = []
        others = False
        devices: list[dict[str, object]] = []
        hottest: float | None = None
        for gpu in gpus:
            temperature = nvml.ask("nvmlDeviceGetTemperature", gpu.whole, 0)
            used, total = _memory(nvml, gpu)
            running = nvml.ask("nvmlDeviceGetComputeRunningProcesses", gpu.handle)
            foreign = [process.pid for process in running or [] if process.pid != os.getpid()]
            if temperature is not None:
                hottest = temperature if hottest is None else max(hottest, temperature)
                if temperature > self.max_temp:
                    wrong.append(f"{gpu} is at {temperature} degC, {self.max_temp:g} are allowed")
            if used is not None and total and used / total > self.max_used_memory:
                wrong.append(
                    f"{used / total:.1%} of the memory of {gpu} is used, {self.max_used_memory:.1%} is allowed"
                )
            if len(foreign) > self.max_processes:
                others = True
                wrong.append(f"{gpu} has {len(foreign)} other processes (pid {', '.join(map(str, foreign[:4]))})")
            devices.append(
                {
                    **nvml.named(gpu),
                    "temperature": temperature,
                    "used": used,
                    "total": total,
                    "processes": None if running is None else len(running),
                }
            )
        return wrong, hottest, devices, others


def _memory(nvml: _nvml.Nvml, gpu: _nvml.Gpu) -> tuple[int | None, int | None]:
    """Return used and total bytes, None where the GPU does not tell.

    The first version of the call counts the driver's own reserve as used.
    """
    info = nvml.ask("nvmlDeviceGetMemoryInfo", gpu.handle, nvml.lib.nvmlMemory_v2)
    if info is None:
        info = nvml.ask("nvmlDeviceGetMemoryInfo", gpu.handle)
    return (info.used, info.total) if info is not None else (None, None)
