"""Python's way to Slurm, for what Piolet and its administrators need.

    import pyslurm_ext
    slurm = pyslurm_ext.connect()
    idle = [node.name for node in slurm.nodes() if node.state == "IDLE"]
    slurm.drain("node7", "ECC errors")

`connect` returns the module `native`, which is compiled against the libslurm that is installed; where there is none,
and a pyslurm is installed that loads, `through_pyslurm`, which has the same functions. Everything raises SlurmError.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from pyslurm_ext.errors import SlurmError
from pyslurm_ext.records import Job, Node, Partition, Snapshot, Step

__all__ = ["Job", "Node", "Partition", "SlurmError", "Snapshot", "Step", "connect"]


def connect(by: str = "") -> ModuleType:
    """Return the module with the functions: `by` 'native', 'pyslurm', or whichever there is, in this order.

    Raises SlurmError: none of them can be loaded.
    """
    modules = {"native": "pyslurm_ext.native", "pyslurm": "pyslurm_ext.through_pyslurm"}
    why = []
    for name in [by] if by else modules:
        try:
            return importlib.import_module(modules[name])
        except ImportError as error:
            why.append(str(error))
    raise SlurmError(
        f"there is no way to Slurm from Python here: {'; '.join(why)}",
        hint="install libslurm and its headers, and then this package again",
    )
