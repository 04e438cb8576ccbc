"""How fast is the memory? The triad a = b + s * c over arrays that no cache holds."""

from __future__ import annotations

import glob
from dataclasses import dataclass

from piolet.api import Context, Eval, Inconclusive, Verdict, at_least, parameter
from piolet.vet.evals import _files, _team

_BLOCK = 16384  # elements: three blocks stay in the nearest caches, so that only the triad's own traffic is left
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@dataclass(frozen=True)
class MemoryBandwidth(Eval):
    """One process for each core, pinned, its memory touched first by itself."""

    name = "memory_bandwidth"
    text = "memory bandwidth of all cores of the step (triad)"
    how = "a = b + s * c in blocks, 24 bytes an element counted, best of 'rounds' that begin together"
    source = "numpy; arrays together at least 4 times the last-level cache"
    needs = "numpy, and that much free memory"
    unit = "GB/s"
    better = "higher"
    loads = frozenset({"cpu", "memory"})
    timeout_s = 20.0

    min_bandwidth: float = parameter(0.0, text="the least bandwidth", unit="GB/s", least=0)
    size: float = parameter(
        0.0, text="of the three arrays together; 0: 4 times the last-level cache", unit="B", least=0
    )
    rounds: int = parameter(4, text="the best of so many counts", least=1)
    cores: int = parameter(0, text="at most so many; 0: all", least=0)

    def check(self, context: Context) -> Verdict:
        """Measure."""
        numpy = _team.numpy()
        where = _team.processors(self.cores)
        wanted = self.size or 4.0 * (_last_level_cache(context) or 64 << 20)
        _check_room(context, wanted)
        elements = max(4 * _BLOCK, int(wanted / 24 / len(where)) // _BLOCK * _BLOCK)

        def prepare(number: int) -> _team.Round:
            a, b, c = (numpy.full(elements, value) for value in (0.0, 1.0, 2.0))
            product = numpy.empty(_BLOCK)
            # Slices are made once: making them costs as much as a block.
            parts = [slice(start, start + _BLOCK) for start in range(0, elements, _BLOCK)]
            blocks = [(a[part], b[part], c[part]) for part in parts]

            def work() -> None:
                multiply, add = numpy.multiply, numpy.add
                for out, left, right in blocks:
                    multiply(right, 3.0, product)
                    add(left, product, out)

            return work

        found = _team.rounds(context, where, prepare, self.rounds)
        best = min(wall for wall, _ in found)
        bandwidth = 24.0 * elements * len(where) / best / 1e9
        details = {"cores": len(where), "bytes": 24 * elements * len(where), "rounds": len(found)}
        return at_least("triad", bandwidth, self.min_bandwidth or None, "GB/s", **details)


def _last_level_cache(context: Context) -> int:
    """Return the bytes of all last-level caches together."""
    caches: dict[tuple[int, str], int] = {}
    for directory in glob.glob(context.path("/sys/devices/system/cpu/cpu[0-9]*/cache/index*")):
        size, level = _files.text(directory + "/size") or "", _files.number(directory + "/level") or 0
        if size[-1:] in _UNITS and size[:-1].isdigit():
            caches[level, _files.text(directory + "/shared_cpu_list") or ""] = int(size[:-1]) * _UNITS[size[-1]]
    top = max((level for level, _ in caches), default=0)
    return sum(size for (level, _), size in caches.items() if level == top)


def _check_room(context: Context, wanted: float) -> None:
    for line in (_files.text(context.path("/proc/meminfo")) or "").splitlines():
        if line.startswith("MemAvailable:") and int(line.split()[1]) * 1024 < 1.2 * wanted:
            raise Inconclusive(
                f"arrays of {wanted / 1e9:.3g} GB do not fit into the memory that is available; set 'size'"
            )
