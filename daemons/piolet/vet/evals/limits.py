"""Do the step's limits allow what it needs: processors, locked memory, open files?"""

from __future__ import annotations

import os
import resource
from dataclasses import dataclass

from piolet.api import EITHER, FAIL, PASS, USER, Context, Eval, Verdict, parameter


@dataclass(frozen=True)
class Limits(Eval):
    """Reads the limits of a process of the step."""

    name = "limits"
    text = "processors of the step, and its limits of locked memory, open files and processes"
    how = "sched_getaffinity and getrlimit in a process of the step"
    source = "the kernel"

    min_cpus: int = parameter(1, text="the least processors (hardware threads)", unit="processors", least=0)
    min_memlock: float = parameter(0.0, text="the least lockable memory; RDMA wants much", unit="GB", least=0)
    memlock_unlimited: bool = parameter(False, text="lockable memory must be unlimited")
    min_nofile: int = parameter(1024, text="the least open files", unit="files", least=0)
    min_nproc: int = parameter(0, text="the least processes", unit="processes", least=0)

    def check(self, context: Context) -> Verdict:
        """Name every limit that is too low."""
        cpus = len(os.sched_getaffinity(0))
        memlock = _soft(resource.RLIMIT_MEMLOCK)
        nofile = _soft(resource.RLIMIT_NOFILE)
        nproc = _soft(resource.RLIMIT_NPROC)
        wrong = []
        whose = USER  # who asked for processors, and may raise a limit up to its hard one
        if cpus < self.min_cpus:
            wrong.append(f"{cpus} processors, {self.min_cpus} are wanted")
        if memlock is not None and (self.memlock_unlimited or memlock < self.min_memlock * 1e9):
            wanted = "unlimited" if self.memlock_unlimited else f"{self.min_memlock:g} GB"
            wrong.append(f"memlock is {memlock / 1e9:.3g} GB, {wanted} is wanted")
            need = resource.RLIM_INFINITY if self.memlock_unlimited else self.min_memlock * 1e9
            whose = whose if _may_be(resource.RLIMIT_MEMLOCK, need) else EITHER
        if nofile is not None and nofile < self.min_nofile:
            wrong.append(f"nofile is {nofile}, {self.min_nofile} is wanted")
            whose = whose if _may_be(resource.RLIMIT_NOFILE, self.min_nofile) else EITHER
        if nproc is not None and nproc < self.min_nproc:
            wrong.append(f"nproc is {nproc}, {self.min_nproc} is wanted")
            whose = whose if _may_be(resource.RLIMIT_NPROC, self.min_nproc) else EITHER
        details = {"cpus": cpus, "memlock": memlock, "nofile": nofile, "nproc": nproc}
        return Verdict(FAIL if wrong else PASS, "; ".join(wrong), "processors", cpus, self.min_cpus, "", details, whose)


def _may_be(which: int, need: float) -> bool:
    """Return whether the hard limit lets the user raise the soft one to `need`."""
    hard = resource.getrlimit(which)[1]
    return hard == resource.RLIM_INFINITY or (need != resource.RLIM_INFINITY and hard >= need)


def _soft(which: int) -> int | None:
    """Return a soft limit, or None: unlimited."""
    value = resource.getrlimit(which)[0]
    return None if value == resource.RLIM_INFINITY else value
