"""How fast is the memory of the GPUs?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from piolet.api import Context, Eval, Verdict, at_least, parameter
from piolet.vet.evals import _torch


@dataclass(frozen=True)
class GpuMemoryBandwidth(Eval):
    """Copies on every device, one device after the other."""

    name = "gpu_memory_bandwidth"
    text = "memory bandwidth of every GPU"
    how = "a copy within the device, bytes read and written counted, best of 'repeats'"
    source = "torch"
    needs = "torch with CUDA"
    unit = "GB/s"
    better = "higher"
    loads = frozenset({"gpu"})
    timeout_s = 60.0

    min_bandwidth: float = parameter(0.0, text="the least bandwidth of every GPU", unit="GB/s", least=0)
    size: float = parameter(1e9, text="copied at once", unit="B", least=1 << 20)
    repeats: int = parameter(10, text="the best of so many counts", least=1)

    def check(self, context: Context) -> Verdict:
        """Measure every device; the slowest counts."""
        torch = _torch.load()
        rates = []
        for device in range(torch.cuda.device_count()):
            with torch.cuda.device(device):
                rates.append(self._measure(torch, device))
        return at_least("slowest GPU", min(rates), self.min_bandwidth or None, "GB/s", rates=rates)

    def _measure(self, torch: Any, device: int) -> float:
        count = int(self.size) // 4
        source = torch.ones(count, dtype=torch.float32, device="cuda")
        target = torch.empty_like(source)
        best = _torch.seconds(torch, device, lambda: target.copy_(source), self.repeats)
        return float(8.0 * count / best / 1e9)
