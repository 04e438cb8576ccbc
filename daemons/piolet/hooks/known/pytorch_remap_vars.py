"""PyTorch's variables, from Slurm's: what `torch.distributed` needs to find its ranks without torchrun."""

from __future__ import annotations

from collections.abc import Iterable

from piolet.api import Asked, Entry, Hook, Node, Step, TaskVariable, Variable

_PORT, _PORTS = 61000, 4536


class PytorchRemapVars(Hook):
    """RANK and LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT."""

    name = "pytorch_remap_vars"
    text = "set RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT for torch.distributed"
    source = "enroot, conf/hooks/extra/50-slurm-pytorch.sh, and the annotation of CSCS; read 2026-11-29"

    def entries(self, asked: Asked, node: Node, step: Step) -> Iterable[Entry]:
        """What the definition sets stays; an outer step's ranks do not."""
        found: list[Entry] = []
        for name, of in (("RANK", "SLURM_PROCID"), ("LOCAL_RANK", "SLURM_LOCALID"), ("WORLD_SIZE", "SLURM_NTASKS")):
            if name not in asked.environment:
                found.append(TaskVariable(name, of, override=True))
        if "MASTER_ADDR" not in asked.environment:
            found.append(TaskVariable("MASTER_ADDR", "SLURM_STEP_NODELIST", first_host=True, override=True))
        # Of the job's number, so that all nodes know it, and of the step's, as two steps may share a node.
        found.append(Variable("MASTER_PORT", str(_PORT + (step.job + step.step) % _PORTS)))
        return found
