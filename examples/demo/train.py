"""Train a small network data-parallel: every task has a part of the data, and all share each gradient.

One task of a Slurm step is one rank. The ranks add their gradients up over TCP: rank 0 gathers, sums
and sends the sum back. Rank 0 says where it listens in a file in the working directory, which every
rank must see. Every wait ends: a rank that is missing fails the others within a minute, by name.
"""

from __future__ import annotations

import os
import secrets
import socket
import struct
import sys
import time
from pathlib import Path

import numpy as np

WAIT_S = 30.0
EPOCHS = 400
REPORT_EVERY = 50
HIDDEN = 16
RATE = 1.0
SEED = 1
DATA = Path("/data/moons.csv")
MARKER = Path("/etc/piolet-demo-image")
TOKEN_BYTES = 16


class TrainingError(Exception):
    """One sentence that says what this rank waited for or missed."""


def variable(name: str) -> str:
    if name not in os.environ:
        raise TrainingError(f"{name} is not set: run this as a task of srun")
    return os.environ[name]


def receive(connection: socket.socket, count: int, what: str) -> bytes:
    """Return exactly `count` bytes."""
    parts = bytearray()
    while len(parts) < count:
        try:
            part = connection.recv(count - len(parts))
        except TimeoutError:
            raise TrainingError(f"{what} said nothing for {WAIT_S:.0f} s") from None
        if not part:
            raise TrainingError(f"{what} is gone")
        parts += part
    return bytes(parts)


class Group:
    """All ranks of a step. `add_up` is the only thing that they do together."""

    def __init__(self, rank: int, size: int, meeting: Path) -> None:
        self.rank = rank
        self.size = size
        self._peers: list[tuple[int, socket.socket]] = []
        if size > 1:
            if rank == 0:
                self._gather_ranks(meeting)
            else:
                self._join(meeting)

    def _gather_ranks(self, meeting: Path) -> None:
        node = variable("SLURMD_NODENAME")
        token = secrets.token_bytes(TOKEN_BYTES)
        deadline = time.monotonic() + WAIT_S
        with socket.socket() as listener:
            listener.bind((socket.gethostbyname(node), 0))
            listener.listen(self.size)
            address, port = listener.getsockname()
            # The file is the user's alone and appears whole: who knows the token may join.
            temporary = meeting.with_suffix(".new")
            temporary.touch(mode=0o600)
            temporary.write_text(f"{address} {port} {token.hex()}\n")
            temporary.rename(meeting)
            try:
                while len(self._peers) < self.size - 1:
                    listener.settimeout(max(0.01, deadline - time.monotonic()))
                    try:
                        connection, _ = listener.accept()
                    except TimeoutError:
                        here = {number for number, _ in self._peers}
                        missing = sorted(set(range(1, self.size)) - here)
                        raise TrainingError(f"ranks {missing} did not come within {WAIT_S:.0f} s") from None
                    connection.settimeout(WAIT_S)
                    if receive(connection, TOKEN_BYTES, "a stranger") != token:
                        connection.close()
                        continue
                    (number,) = struct.unpack("!I", receive(connection, 4, "a new rank"))
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    self._peers.append((number, connection))
            finally:
                meeting.unlink(missing_ok=True)
        self._peers.sort()  # sums are added in the same order in every run

    def _join(self, meeting: Path) -> None:
        deadline = time.monotonic() + WAIT_S
        while True:
            try:
                address, port, token = meeting.read_text().split()
                break
            except FileNotFoundError:
                if time.monotonic() > deadline:
                    raise TrainingError(f"rank 0 did not write {meeting} within {WAIT_S:.0f} s") from None
                time.sleep(0.02)
        try:
            connection = socket.create_connection((address, int(port)), timeout=WAIT_S)
        except OSError as error:
            raise TrainingError(f"rank 0 does not answer at {address}:{port}: {error}") from None
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(bytes.fromhex(token) + struct.pack("!I", self.rank))
        self._peers.append((0, connection))

    def add_up(self, vector: np.ndarray) -> np.ndarray:
        """Return the sum of every rank's vector (float64, all of one length)."""
        total = vector.astype(np.float64)
        if self.rank == 0:
            for number, connection in self._peers:
                total = total + np.frombuffer(receive(connection, total.nbytes, f"rank {number}"))
            for _, connection in self._peers:
                connection.sendall(total.tobytes())
        else:
            ((_, connection),) = self._peers
            connection.sendall(total.tobytes())
            total = np.frombuffer(receive(connection, total.nbytes, "rank 0"))
        return total


class Network:
    """Two inputs, one hidden layer of tanh, one logistic output."""

    def __init__(self) -> None:
        rng = np.random.default_rng(SEED)  # the same start on every rank
        self.parameters = np.concatenate(
            [rng.normal(0, 1.0, 2 * HIDDEN), np.zeros(HIDDEN), rng.normal(0, 0.5, HIDDEN), np.zeros(1)]
        )

    def _split(self, p: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        n = HIDDEN
        return p[: 2 * n].reshape(2, n), p[2 * n : 3 * n], p[3 * n : 4 * n], p[4 * n :]

    def loss_and_gradient(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return one vector: the summed loss, the number of samples that are right, the summed gradient."""
        w1, b1, w2, b2 = self._split(self.parameters)
        hidden = np.tanh(x @ w1 + b1)
        logit = hidden @ w2 + b2[0]
        chance = 1 / (1 + np.exp(-logit))
        loss = np.sum(np.logaddexp(0, logit) - y * logit)
        wrong_by = chance - y
        back = np.outer(wrong_by, w2) * (1 - hidden**2)
        right = np.sum((chance > 0.5) == (y > 0.5))
        parts = [[loss, right], (x.T @ back).ravel(), back.sum(axis=0), hidden.T @ wrong_by, [wrong_by.sum()]]
        return np.concatenate(parts)


def image_name() -> str:
    """Return what this process sees as its system: the image's own name, and its distribution."""
    lines = Path("/etc/os-release").read_text().splitlines()
    system = next((line.split("=", 1)[1].strip('"') for line in lines if line.startswith("PRETTY_NAME=")), "unknown")
    marker = MARKER.read_text().strip() if MARKER.exists() else "no image: the host"
    return f"{marker}, {system}"


def train() -> None:
    rank, size = int(variable("RANK")), int(variable("WORLD_SIZE"))  # of the hook pytorch_remap_vars
    print(f"rank {rank} of {size} on {socket.gethostname()} in [{image_name()}]", flush=True)
    table = np.loadtxt(DATA, delimiter=",", skiprows=1)
    mine = table[rank::size]
    x, y = mine[:, :2], mine[:, 2]
    meeting = Path.cwd() / f"train-{variable('SLURM_JOB_ID')}.{variable('SLURM_STEP_ID')}.rank0"
    group = Group(rank, size, meeting)
    network = Network()
    for epoch in range(EPOCHS + 1):
        total = group.add_up(network.loss_and_gradient(x, y))
        if rank == 0 and epoch % REPORT_EVERY == 0:
            share = 100 * total[1] / len(table)
            print(f"epoch {epoch:4d}  loss {total[0] / len(table):.4f}  right {share:.1f} %", flush=True)
        network.parameters = network.parameters - RATE * total[2:] / len(table)


def main() -> int:
    try:
        train()
    except (TrainingError, OSError) as error:
        print(f"rank {os.environ.get('SLURM_PROCID', '?')}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
