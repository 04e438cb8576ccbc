"""Which evals there are: Piolet's own, a site's, and the names that vetnode's protocols use.

A site's eval is one file with one class in a directory that the configuration names. A file there that cannot
be read as an eval is an error that names it: a check that is silently missing would be the worst of all.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.machinery import PathFinder

from piolet.api import Eval, Inconclusive
from piolet.base.errors import VetError
from piolet.vet.runner import loading

OWN = {
    "clock_skew": "ClockSkew",
    "cpu_gemm": "CpuGemm",
    "cuda_kernel": "CudaKernel",
    "cxi": "Cxi",
    "dns": "Dns",
    "env": "Env",
    "fingerprint": "Fingerprint",
    "gpu": "Gpu",
    "gpu_gemm": "GpuGemm",
    "gpu_health": "GpuHealth",
    "gpu_memory_bandwidth": "GpuMemoryBandwidth",
    "infiniband": "Infiniband",
    "internet_access": "InternetAccess",
    "kernel_log": "KernelLog",
    "leftovers": "Leftovers",
    "limits": "Limits",
    "memory_available": "MemoryAvailable",
    "memory_bandwidth": "MemoryBandwidth",
    "mounts": "Mounts",
    "nccl_bandwidth": "NcclBandwidth",
    "network_pair": "NetworkPair",
    "random": "Random",
    "scratch_io": "ScratchIo",
}

VETNODE = {
    "vetnode.evaluations.cuda_eval.CUDAEval": "cuda_kernel",
    "vetnode.evaluations.env_var_eval.EnvVarEval": "env",
    "vetnode.evaluations.gpu_eval.GPUEval": "gpu",
    "vetnode.evaluations.internet_access.InternetAccessEval": "internet_access",
    "vetnode.evaluations.nccl_eval.NCCLEval": "nccl_bandwidth",
    "vetnode.evaluations.nccl_lib_eval.NcclLibEval": "nccl_bandwidth",
    "vetnode.evaluations.nccl_pytorch_eval.NcclPytorchEval": "nccl_bandwidth",
    "vetnode.evaluations.random.RandomEval": "random",
    "vetnode.evaluations.rccl_lib_eval.RcclLibEval": "nccl_bandwidth",
}


@dataclass(frozen=True)
class CatalogueEntry:
    """One eval that a protocol can name. Its class is imported when it is asked for."""

    name: str
    target: str

    @cached_property
    def kind(self) -> type[Eval]:
        """The class. Raises Inconclusive."""
        return loading.load(self.target)


class Catalogue:
    """The evals by short name, and by the names that vetnode's protocols use."""

    def __init__(self, entries: Mapping[str, CatalogueEntry]) -> None:
        self.entries = dict(sorted(entries.items()))

    def find(self, name: str) -> CatalogueEntry | None:
        """Return the entry that a protocol calls `name`, or None: it is a user's own class, or misspelt."""
        return self.entries.get(VETNODE.get(name, name))

    def names(self) -> list[str]:
        """Return every name that `find` knows."""
        return [*self.entries, *VETNODE]


def catalogue(directories: Iterable[str] = ()) -> Catalogue:
    """Return Piolet's evals and those of the site's `directories`. Raises VetError."""
    entries = {name: CatalogueEntry(name, f"piolet.vet.evals.{name}:{kind}") for name, kind in OWN.items()}
    for directory in directories:
        for entry in _site(directory):
            if entry.name in entries:
                raise VetError(
                    f"{entry.target.rpartition(':')[0]} defines the eval '{entry.name}', which there is already",
                    "give it another name",
                )
            entries[entry.name] = entry
    return Catalogue(entries)


def _site(directory: str) -> list[CatalogueEntry]:
    try:
        names = sorted(
            name for name in os.listdir(directory) if name.endswith(".py") and not name.startswith(("_", "."))
        )
    except FileNotFoundError:
        return []
    except OSError as error:
        raise VetError(f"cannot read the directory of evals {directory}: {error.strerror}") from None
    return [_file_entry(os.path.join(directory, name)) for name in names]


def _file_entry(path: str) -> CatalogueEntry:
    """Return the entry of a site's file: the one class in it that is an eval."""
    try:
        module = loading.module_of(path)
    except Inconclusive as error:
        raise VetError(f"{error}", "this file is in a directory of evals, see [vet] evals in piolet.toml") from None
    own = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Eval) and value.__module__ == module.__name__
    ]
    if len(own) != 1 or not own[0].name:
        raise VetError(f"{path} must define one class that derives from piolet.api.Eval and has a name")
    return CatalogueEntry(own[0].name, f"{path}:{own[0].__name__}")


def exists(dotted: str, search: Iterable[str]) -> bool:
    """Return whether the module of a dotted class can be found here, `search` first; nothing is imported."""
    path = [*search, *sys.path]
    for name in dotted.split(".")[:-1]:
        spec = PathFinder.find_spec(name, path)
        if spec is None:
            return False
        path = spec.submodule_search_locations or []
    return True
