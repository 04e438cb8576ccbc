"""NVIDIA's Multi-Process Service for the step: several processes on one GPU, where GPUs are in exclusive mode."""

from __future__ import annotations

from collections.abc import Iterable

from piolet.api import Asked, Entry, File, Hook, Missing, Node, Program, Step, Variable

_CONTROL = "/usr/bin/nvidia-cuda-mps-control"
_PLACE = "/run/piolet/mps"


class NvidiaCudaMps(Hook):
    """One control daemon for each step and node, in the foreground, as the user; it ends with the step."""

    name = "nvidia_cuda_mps"
    text = "NVIDIA's Multi-Process Service: its control daemon runs as the user as long as the step does"
    source = "NVIDIA, Multi-Process Service, CUDA_MPS_PIPE_DIRECTORY; CSCS, CUDA MPS hook; read 2026-11-29"
    hardware = "NVIDIA GPUs"
    looks = (_CONTROL,)

    def entries(self, asked: Asked, node: Node, step: Step) -> Iterable[Entry]:
        """The program comes with the driver (devices); pipes and logs are the container's, which has to be writable."""
        if not node.first(_CONTROL):
            raise Missing(f"there is no {_CONTROL} on this node")
        places = {"CUDA_MPS_PIPE_DIRECTORY": f"{_PLACE}/pipe", "CUDA_MPS_LOG_DIRECTORY": f"{_PLACE}/log"}
        for name, place in places.items():
            yield File(f"{place}/README", "Made for the hook nvidia_cuda_mps.\n")
            yield Variable(name, place, override=True)
        yield Program((_CONTROL, "-f"), variables=places)
