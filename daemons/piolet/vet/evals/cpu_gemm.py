"""How fast do the processors multiply matrices, all together and the slowest alone?"""

from __future__ import annotations

import os
from dataclasses import dataclass
from statistics import median

from piolet.api import FAIL, NODE, Context, Eval, Verdict, at_least, parameter
from piolet.vet.evals import _team


@dataclass(frozen=True)
class CpuGemm(Eval):
    """One process for each core, pinned, each with one thread of the linear algebra library."""

    name = "cpu_gemm"
    text = "double precision matrix product on all cores of the step"
    how = "one pinned process a core, best of three rounds that begin together; a checksum of the product"
    source = "numpy's linear algebra"
    needs = "numpy"
    unit = "GFLOP/s"
    better = "higher"
    loads = frozenset({"cpu", "memory"})
    timeout_s = 10.0

    min_rate: float = parameter(0.0, text="the least rate of all cores together", unit="GFLOP/s", least=0)
    max_spread: float = parameter(
        0.0, text="how far the slowest core may be below the median; 0: any", unit="0..1", least=0
    )
    size: int = parameter(768, text="rows and columns", least=16)
    repeats: int = parameter(4, text="products in a round", least=1)

    def check(self, context: Context) -> Verdict:
        """Measure, and compare the cores with each other."""
        os.environ["OPENBLAS_NUM_THREADS"] = "1"
        numpy = _team.numpy()
        where = _team.processors()

        def prepare(number: int) -> _team.Round:
            rows = numpy.arange(self.size * self.size, dtype=numpy.float64).reshape(self.size, self.size)
            left, right = rows % 7.0, rows % 5.0 - 2.0
            out = numpy.empty_like(left)
            # Whole numbers this small are exact in double precision, whatever the order of the sums.
            expected = float(left.sum(axis=0) @ right.sum(axis=1))

            def work() -> float:
                for _ in range(self.repeats):
                    numpy.matmul(left, right, out=out)
                return float(out.sum()) - expected

            return work

        try:
            found = _team.rounds(context, where, prepare, 3)
        except _team.WrongError as error:
            reason = f"core {error.processor} multiplies wrongly: the sum of the product is off by {error.off:g}"
            return Verdict(FAIL, reason, details={"cores": len(where)}, whose=NODE)
        flop = 2.0 * self.size**3 * self.repeats
        wall = min(found)[0]
        rate = flop * len(where) / wall / 1e9
        best = [flop / min(times) / 1e9 for times in zip(*(one for _, one in found))]  # noqa: B905 - Python 3.8
        middle = median(best)
        slowest = min(range(len(best)), key=lambda index: best[index])
        details = {"cores": len(where), "slowest_core": where[slowest], "slowest": best[slowest], "median": middle}
        if self.max_spread and best[slowest] < middle * (1 - self.max_spread):
            share = 1 - best[slowest] / middle
            reason = f"core {where[slowest]} is {share:.0%} slower than the median of the cores"
            return Verdict(
                FAIL, reason, "slowest core", best[slowest], middle * (1 - self.max_spread), "GFLOP/s", details
            )
        return at_least("matrix product", rate, self.min_rate or None, "GFLOP/s", **details)
