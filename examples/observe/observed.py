"""Train as examples/demo/train.py does, with what makes real trainings wait: for data, for the host, for each other.

In each step a rank reads its batch from a file, past the page cache; the host prepares it; a GPU computes; and the
gradients of all ranks are added up, for which everybody waits for the last one. Reading, preparing and waiting are
real. The GPU is not: a real one of this speed would be busy for KERNEL_S, and so long the rank waits, while the host
computes the gradient. What it would do is written to a file, by which the cluster's simulated GPUs do it.
"""

from __future__ import annotations

import mmap
import os
import struct
import sys
import time
from pathlib import Path

import numpy as np
from train import Group, Network, TrainingError, variable

SECONDS = float(os.environ.get("OBSERVED_SECONDS", "80"))
KERNEL_S = 0.15
PREPARE = 100  # times that a batch is shuffled and scaled: what decoding pictures costs
BATCH = 64 * 1024  # bytes
ROW = np.dtype([("x", "<f4", 2), ("y", "<f4"), ("none", "<f4")])  # 16 bytes, so batches have whole ones
OF_GRADIENT = 256  # samples
TELL_S = 2.0
RATE = 0.3
READY, COMPUTES, POLLS = range(3)


class Gpu:
    """What this rank's GPU would do, for the simulator (tests/simulators/nvml/driven.h)."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._turn, self._now, self._since, self._seconds = 0, READY, time.monotonic(), [0.0, 0.0, 0.0]

    def turns_to(self, what: int) -> None:
        now = time.monotonic()
        self._seconds[self._now] += now - self._since
        self._turn, self._now, self._since = self._turn + 1, what, now
        os.pwrite(self._file, struct.pack("=QQd3dQ", self._turn, what, now, *self._seconds, self._turn), 0)


class Loader:
    """Reads batches of a file, each anew from the file system."""

    def __init__(self, path: Path, seed: int) -> None:
        self._file = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        self._many = os.fstat(self._file).st_size // BATCH
        self._draw = np.random.default_rng(seed)
        self._page = mmap.mmap(-1, BATCH)  # such a read wants a buffer at the start of a page

    def read(self) -> np.ndarray:
        if os.preadv(self._file, [self._page], int(self._draw.integers(self._many)) * BATCH) != BATCH:
            raise TrainingError("the data end within a batch")
        return np.frombuffer(self._page, ROW, BATCH // ROW.itemsize)

    def prepared(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return a batch as the network takes it; this is the host's work."""
        x = rows["x"].astype(np.float64)
        order = np.arange(len(rows))
        for _ in range(PREPARE):
            order = self._draw.permutation(order)
            x = np.tanh(x[order]) * np.sqrt(x.var(axis=0))
        return rows["x"][:OF_GRADIENT].astype(np.float64), rows["y"][:OF_GRADIENT].astype(np.float64)


def train() -> None:
    rank, size = int(variable("RANK")), int(variable("WORLD_SIZE"))
    here = Path.cwd()
    gpu = Gpu(Path(variable("OBSERVED_GPUS")) / f"{variable('SLURMD_NODENAME')}.{variable('SLURM_LOCALID')}")
    loader = Loader(here / "data" / "moons.bin", rank)
    group = Group(rank, size, here / f"observed-{variable('SLURM_JOB_ID')}.rank0")
    network, ends, told, step = Network(), time.monotonic() + SECONDS, 0.0, 0
    while True:
        x, y = loader.prepared(loader.read())
        gpu.turns_to(COMPUTES)
        done = time.monotonic() + KERNEL_S
        # The first rank says when it is over, and all hear it in the same step.
        mine = np.append(network.loss_and_gradient(x, y), float(rank == 0 and time.monotonic() > ends))
        time.sleep(max(0.0, done - time.monotonic()))
        gpu.turns_to(POLLS)
        total = group.add_up(mine)
        gpu.turns_to(READY)
        network.parameters = network.parameters - RATE * total[2:-1] / (size * OF_GRADIENT)
        step += 1
        if rank == 0 and time.monotonic() - told >= TELL_S:
            told, loss = time.monotonic(), total[0] / (size * OF_GRADIENT)
            print(f"piolet-mark step={step} loss={loss:.4f} time={time.time():.1f}", flush=True)
        if total[-1]:
            return


def main() -> int:
    try:
        train()
    except (TrainingError, OSError) as error:
        print(f"rank {os.environ.get('SLURM_PROCID', '?')}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
