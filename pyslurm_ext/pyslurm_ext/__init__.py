"""Python's way to Slurm, for what Piolet and its administrators need.

    import pyslurm_ext
    slurm = pyslurm_ext.connect()
    idle = [node.name for node in slurm.nodes() if node.state == "IDLE"]
    slurm.drain("node7", "ECC errors")

`connect` returns the module `native`, which is compiled against the libslurm that is installed. Everything raises
SlurmError.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from pyslurm_ext.errors import SlurmError
from pyslurm_ext.records import Job, Node, Partition, Step

__all__ = ["Job", "Node", "Partition", "SlurmError", "Step", "connect"]


def connect() -> ModuleType:
    """Return the module with the functions. Raises SlurmError: this was installed without Slurm's headers."""
    try:
        return importlib.import_module("pyslurm_ext.native")
    except ImportError as error:
        raise SlurmError(
            f"the binding of libslurm cannot be loaded: {error}",
            hint="install libslurm and its headers, and then this package again",
        ) from None
