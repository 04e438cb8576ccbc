"""How fast do GPUs exchange data, within a node and between nodes? torch.distributed; gloo without a GPU."""

from __future__ import annotations

import datetime
import os
import select
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from piolet.api import USER, Context, Eval, Inconclusive, Verdict, at_least, parameter
from piolet.vet.evals import _torch


@dataclass(frozen=True)
class Warmup:
    """What is done before it counts."""

    payload: float = parameter(256e6, text="of each warm-up", unit="B", least=4)
    runs: int = parameter(3, text="how many", least=0)


@dataclass(frozen=True)
class NcclBandwidth(Eval):
    """One process for each GPU, all of one process group."""

    name = "nccl_bandwidth"
    text = "bus bandwidth of a collective operation within or between nodes"
    how = "all_reduce (bus bandwidth 2(n-1)/n) or another method, best of 'repeats' after the warm-up"
    source = "torch.distributed with NCCL; with gloo where backend says so"
    needs = "torch; for several nodes a vetting of several"
    unit = "GB/s"
    better = "higher"
    scope = "group"
    loads = frozenset({"gpu", "network"})
    timeout_s = 120.0
    effect = 0.2

    min_bandwidth: float = parameter(0.0, text="the least bus bandwidth", unit="GB/s", least=0)
    payload: float = parameter(1e9, text="of one operation", unit="B", least=4)
    method: Literal["allreduce", "broadcast", "roundrobin", "gather", "allreduce-gather"] = parameter(
        "allreduce", text="the operation"
    )
    topology: Literal["full", "internode", "intranode"] = parameter("full", text="who takes part")
    # The class above says what a protocol may write; an instance gets the plain table.
    warmup: Warmup | dict[str, float] = parameter({}, text="what is done before it counts")  # noqa: RUF009
    together: int = parameter(
        64, text="nodes in one operation; more are several groups, with a file each to find each other",
        unit="nodes", least=2,
    )  # fmt: skip
    repeats: int = parameter(3, text="the best of so many counts", least=1)
    backend: Literal["nccl", "gloo"] = parameter("nccl", text="gloo runs without a GPU")
    ranks: int = parameter(0, text="processes on a node; 0: one for each GPU", least=0)

    @classmethod
    def scope_of(cls, parameters: Mapping[str, Any]) -> str:
        """Within nodes each is measured for itself."""
        return "node" if parameters.get("topology") == "intranode" else cls.scope

    def check(self, context: Context) -> Verdict:
        """Fork the ranks and take the slowest one's bandwidth."""
        group: Mapping[str, Any] = context.facts.get("group") or {"rank": 0, "size": 1}
        if self.topology != "intranode" and group["size"] < 2:
            raise Inconclusive("there is no other node to measure with", USER)
        local = 1 if self.topology == "internode" else self.ranks or _devices(self.backend)
        world = local * int(group["size"])
        if world < 2:
            raise Inconclusive("a collective operation needs at least two GPUs", USER)
        store = str(group.get("path") or os.path.join(context.scratch, f"store-{os.getpid()}"))
        base = int(group["rank"]) * local
        children = [_fork(self, context, store, base + index, index, world) for index in range(local)]
        rates = [_answer(pid, pipe, context) for pid, pipe in children]
        return at_least(self.method, min(rates), self.min_bandwidth or None, "GB/s", ranks=world, backend=self.backend)

    def measure(self, store: str, rank: int, local: int, world: int, seconds: float, within: bool) -> float:
        """Join the process group as `rank` and return the bandwidth in GB/s."""
        if within:  # nobody outside may connect to what gloo and NCCL listen on
            os.environ.update(GLOO_SOCKET_IFNAME="lo", NCCL_SOCKET_IFNAME="lo")
        torch = _torch.load(cuda=self.backend == "nccl")
        dist = torch.distributed
        device = f"cuda:{local}" if self.backend == "nccl" else "cpu"
        if self.backend == "nccl":
            torch.cuda.set_device(local)
        dist.init_process_group(
            self.backend, store=dist.FileStore(store, world), rank=rank, world_size=world,
            timeout=datetime.timedelta(seconds=max(1.0, seconds)),
        )  # fmt: skip
        warm = {"payload": 256e6, "runs": 3, **cast("Mapping[str, float]", self.warmup)}
        for _ in range(int(warm["runs"])):
            _Operation(torch, rank, world, device, float(warm["payload"])).run("allreduce")
        operation = _Operation(torch, rank, world, device, self.payload)
        rate = max(operation.run(self.method) for _ in range(self.repeats))
        dist.destroy_process_group()
        return float(rate)


class _Operation:
    """Collectives over one tensor, each timed between two barriers."""

    def __init__(self, torch: Any, rank: int, world: int, device: str, size: float) -> None:
        self._torch, self._dist = torch, torch.distributed
        self._rank, self._world = rank, world
        self._tensor = torch.ones(max(1, int(size) // 4), dtype=torch.float32, device=device)
        self._gb = self._tensor.numel() * 4 / 1e9

    def run(self, method: str) -> float:
        """Return the bus bandwidth in GB/s, with the factors of NVIDIA's nccl-tests."""
        n = self._world
        if method == "roundrobin":
            return float(min(self._gb / self._time(lambda s=source: self._send(s)) for source in range(n)))
        work, factor = {
            "allreduce": (self._reduce, 2 * (n - 1) / n),
            "broadcast": (lambda: self._dist.broadcast(self._tensor, 0), 1.0),
            "gather": (self._gather, (n - 1) / n * n),
            "allreduce-gather": (self._reduce_gather, 2 * (n - 1) / n + (n - 1)),
        }[method]
        return float(self._gb * factor / self._time(work))

    def _reduce(self) -> None:
        self._dist.all_reduce(self._tensor, op=self._dist.ReduceOp.MAX)

    def _gather(self) -> None:
        parts = [self._torch.empty_like(self._tensor) for _ in range(self._world)] if self._rank == 0 else None
        self._dist.gather(self._tensor, parts, dst=0)

    def _reduce_gather(self) -> None:
        self._reduce()
        self._gather()

    def _send(self, source: int) -> None:
        """`source` sends to the next rank."""
        target = (source + 1) % self._world
        if self._rank == source:
            self._dist.send(self._tensor, target)
        elif self._rank == target:
            self._dist.recv(self._tensor, source)

    def _time(self, work: Any) -> float:
        self._dist.barrier()
        started = time.monotonic()
        work()
        if self._tensor.is_cuda:
            self._torch.cuda.synchronize()
        self._dist.barrier()  # the slowest counts
        return time.monotonic() - started


def _devices(backend: str) -> int:
    """Return the number of GPUs, asked in a child: CUDA, once used, does not survive a fork."""
    if backend == "gloo":
        return 2

    def ask() -> float:
        return float(_torch.load().cuda.device_count())

    pid, pipe = _fork_call(ask)
    return int(_read(pid, pipe, 30.0))


def _fork(own: NcclBandwidth, context: Context, store: str, rank: int, local: int, world: int) -> tuple[int, int]:
    within = own.topology == "intranode"
    return _fork_call(lambda: own.measure(store, rank, local, world, context.remaining(), within))


def _fork_call(work: Callable[[], float]) -> tuple[int, int]:
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid:
        os.close(theirs)
        return pid, ours
    try:
        text = repr(work())
    except Inconclusive as error:
        text = f"?{error}"
    except BaseException as error:  # noqa: BLE001 - the parent makes a verdict of it
        text = f"?{type(error).__name__}: {str(error).splitlines()[0][:300] if str(error) else ''}"
    os.write(theirs, text.encode())
    os._exit(0)


def _answer(pid: int, pipe: int, context: Context) -> float:
    return _read(pid, pipe, context.remaining())


def _read(pid: int, pipe: int, seconds: float) -> float:
    """Return what a child found. Raises Inconclusive."""
    if not select.select([pipe], [], [], seconds)[0]:
        os.kill(pid, signal.SIGKILL)
        raise Inconclusive("a rank did not answer: a partner may be missing")
    text = os.read(pipe, 4096).decode()
    os.close(pipe)
    os.waitpid(pid, 0)
    if not text or text.startswith("?"):
        raise Inconclusive(text[1:] or "a rank died")
    return float(text)
