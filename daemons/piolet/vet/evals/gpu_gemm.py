"""How fast do the GPUs multiply matrices, and is the product right?"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from piolet.api import FAIL, NODE, PASS, Context, Eval, Inconclusive, Verdict, at_least, parameter
from piolet.vet.evals import _clocks, _nvml, _severities, _torch

_LOAD_S = 0.4
"""So long a GPU computes while its clocks are looked at."""
_LAUNCHES_MAX = 1000
"""So many products are queued at most: with more the processor would wait for the GPU, and look when it is over."""


@dataclass(frozen=True)
class GpuGemm(Eval):
    """One product on every device, one device after the other."""

    name = "gpu_gemm"
    text = "matrix product of every GPU, with a checksum, and its clocks under load"
    how = "torch.matmul, best of 'repeats'; whole numbers, whose sums are exact, must come out right; NVML's clocks"
    source = "torch"
    needs = "torch with CUDA"
    unit = "TFLOP/s"
    better = "higher"
    loads = frozenset({"gpu"})
    timeout_s = 60.0

    min_rate: float = parameter(0.0, text="the least rate of every GPU", unit="TFLOP/s", least=0)
    size: int = parameter(8192, text="rows and columns", least=64)
    repeats: int = parameter(10, text="the best of so many counts", least=1)
    dtype: Literal["bfloat16", "float16", "float32"] = parameter("bfloat16", text="of the numbers")

    def check(self, context: Context) -> Verdict:
        """Measure every device; the slowest counts."""
        torch = _torch.load()
        rates = []
        wrong: list[str] = []
        warnings: list[str] = []
        for device in range(torch.cuda.device_count()):
            with torch.cuda.device(device):
                rate, error, clocks = self._measure(torch, device)
            # 16-bit results are rounded, by at most half a unit in the last place of what they can grow to.
            allowed = 0.0 if self.dtype == "float32" else 0.5 * self.size**0.5
            if not error <= allowed:
                return Verdict(
                    FAIL, f"GPU {device} multiplies wrongly: a sum of the product is off by {error:g}", whose=NODE
                )
            rates.append(rate)
            if clocks is not None:
                row = _severities.find("nvml", clocks[0])
                told = wrong if row.severity == _severities.FAIL else warnings
                told.append(f"GPU {device}: {row.text}{clocks[1]}, {rate:.4g} TFLOP/s")
        if wrong:
            what = "; ".join(wrong + warnings)[:500]
            return Verdict(FAIL, what, "slowest GPU", min(rates), None, "TFLOP/s", {"rates": rates}, NODE)
        verdict = at_least("slowest GPU", min(rates), self.min_rate or None, "TFLOP/s", rates=rates, dtype=self.dtype)
        if verdict.outcome == PASS and warnings:
            return dataclasses.replace(verdict, reason="; ".join(warnings)[:500])
        return verdict

    def _measure(self, torch: Any, device: int) -> tuple[float, float, tuple[str, str, int] | None]:
        """Return TFLOP/s, by how much the worst row sum of the product is off, and what is wrong with the clocks."""

        def ones() -> Any:
            # Of -1, 0 and 1 every product and every partial sum is exact in the accumulators.
            return torch.randint(-1, 2, (self.size, self.size), device="cuda").to(getattr(torch, self.dtype))

        left, right = ones(), ones()
        out = torch.matmul(left, right)
        best = _torch.seconds(torch, device, lambda: torch.matmul(left, right, out=out), self.repeats)
        # A row sum of the product is the row times the row sums of the other factor: no second product is needed.
        expected = left.double() @ right.double().sum(dim=1)
        error = (out.double().sum(dim=1) - expected).abs().max().item()
        clocks = _look(torch, device, lambda: torch.matmul(left, right, out=out), best)
        return 2.0 * self.size**3 / best / 1e12, float(error), clocks


def _look(torch: Any, device: int, work: Any, seconds: float) -> tuple[str, str, int] | None:
    """Return what is wrong with a GPU's clocks while `work`, which takes so long, is done again and again."""
    uuid = str(getattr(torch.cuda.get_device_properties(device), "uuid", ""))
    try:
        nvml = _nvml.Nvml()
        gpu = next((one for one in nvml.wholes() if uuid and one.uuid == f"GPU-{uuid}"), None)
        if gpu is None:
            return None
        done = torch.cuda.Event()
        for _ in range(min(_LAUNCHES_MAX, max(2, round(_LOAD_S / seconds)))):
            work()
        done.record()
        return _clocks.under_load(nvml, gpu, lambda: not done.query())
    except (Inconclusive, _nvml.LostError):  # the product was right; without NVML it is all that is known
        return None
