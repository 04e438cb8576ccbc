"""How fast do the GPUs multiply matrices, and is the product right?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from piolet.api import FAIL, NODE, Context, Eval, Verdict, at_least, parameter
from piolet.vet.evals import _torch


@dataclass(frozen=True)
class GpuGemm(Eval):
    """One product on every device, one device after the other."""

    name = "gpu_gemm"
    text = "matrix product of every GPU, with a checksum"
    how = "torch.matmul, best of 'repeats'; small whole numbers, whose sums are exact in fp32, must come out right"
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
        for device in range(torch.cuda.device_count()):
            with torch.cuda.device(device):
                rate, error = self._measure(torch, device)
            # 16-bit results are rounded, by at most half a unit in the last place of what they can grow to.
            allowed = 0.0 if self.dtype == "float32" else 0.5 * self.size**0.5
            if not error <= allowed:
                return Verdict(
                    FAIL, f"GPU {device} multiplies wrongly: a sum of the product is off by {error:g}", whose=NODE
                )
            rates.append(rate)
        return at_least("slowest GPU", min(rates), self.min_rate or None, "TFLOP/s", rates=rates, dtype=self.dtype)

    def _measure(self, torch: Any, device: int) -> tuple[float, float]:
        """Return TFLOP/s, and by how much the worst row sum of the product is off."""

        def ones() -> Any:
            # Of -1, 0 and 1 every product and every partial sum is exact in the accumulators.
            return torch.randint(-1, 2, (self.size, self.size), device="cuda").to(getattr(torch, self.dtype))

        left, right = ones(), ones()
        out = torch.matmul(left, right)
        best = _torch.seconds(torch, device, lambda: torch.matmul(left, right, out=out), self.repeats)
        # A row sum of the product is the row times the row sums of the other factor: no second product is needed.
        expected = left.double() @ right.double().sum(dim=1)
        error = (out.double().sum(dim=1) - expected).abs().max().item()
        return 2.0 * self.size**3 / best / 1e12, float(error)
