"""Sends frames as so many nodes' forwarders: a process of its own, which prints JSON. Argument: an object of JSON.

url, socket, central, cluster   of the service
nodes      how many names: nid00000, …
seconds    for how long
interval   seconds between two frames of a node's step
every      seconds between two batches of a node
"""

from __future__ import annotations

import heapq
import json
import os
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from piolet.api import GPU_QUANTITIES, HOST_QUANTITIES
from piolet.base.errors import PioletError
from piolet.events import batch
from piolet.transport.asking import Asker, Peer

BOOT = "0b1c2d3e-0000-4000-8000-000000000000"
ABSENT = ("tensor_int", "tensor_half", "tensor_double", "c2c_tx", "c2c_rx")
SCALE = {"B/s": 2e10, "W": 600.0, "degC": 60.0, "MHz": 1900.0, "B": 7e10, "1": 1.0, "J": 1e9, "cores": 50.0}
THREADS = 16


def jobs_of(node: int) -> list[tuple[int, int]]:
    """Return the jobs that run on a node, and their uids: one of all, or of 64 nodes, or of one."""
    if node % 4 == 0:
        return [(1, 1001)]
    return [(1000 + node // 64, 1002)] if node % 4 in (1, 2) else [(100_000 + node, 1003)]


class Node:
    """A node's journal, made as it is sent."""

    def __init__(self, number: int, wish: dict[str, Any], start: float) -> None:
        self.name = f"nid{number:05d}"
        self.number, self.wish = number, wish
        self.rng = random.Random(number)
        self.made = start
        self.seq = 0
        self.epoch = f"{number:016x}"
        self.frames = 0
        self.gpu = [q for q in GPU_QUANTITIES if q.name not in ABSENT]

    def lines(self, now: float) -> list[bytes]:
        """Return the records up to now that were not sent."""
        found = []
        while self.made + self.wish["interval"] <= now:
            for job, uid in jobs_of(self.number):
                if self.seq == 0:
                    found.append(self.line("observe.step", job, uid, {
                        "version": 1, "interval": self.wish["interval"], "began": self.made, "found": self.made,
                        "devices": [{"uuid": f"GPU-{self.name}-{gpu}"} for gpu in range(4)], "sources": {},
                    }))  # fmt: skip
                self.made += self.wish["interval"]
                found.append(self.line("observe.frame", job, uid, self.frame()))
                self.frames += 1
        return found

    def frame(self) -> dict[str, Any]:
        """Return the body of a frame of 4 GPUs."""
        value = self.rng.random
        gpus = [
            [gpu, f"GPU-{self.name}-{gpu}", *(float(f"{value() * SCALE.get(q.unit, 0.0):.5g}") for q in self.gpu)]
            for gpu in range(4)
        ]  # fmt: skip
        ports = [[f"hsn{port}", "cxi", 25e9, round(value() * 1e10), round(value() * 1e10), 0.0] for port in range(4)]
        host = [float(f"{value() * SCALE.get(q.unit, 0.0):.5g}") for q in HOST_QUANTITIES]
        scratch = ["/scratch", "lustre", "node", round(value() * 1e9), round(value() * 1e9)]
        return {
            "up": self.made, "span": float(self.wish["interval"]),
            "host": {"columns": [q.name for q in HOST_QUANTITIES], "rows": [host]},
            "gpu": {"columns": ["gpu", "uuid", *(q.name for q in self.gpu)], "rows": gpus},
            "net": {"columns": ["port", "kind", "rate", "rx", "tx", "errors"], "rows": ports},
            "io": {"columns": ["mount", "kind", "scope", "read", "write"], "rows": [scratch]},
        }  # fmt: skip

    def line(self, kind: str, job: int, uid: int, body: dict[str, Any]) -> bytes:
        """Return a record's line."""
        self.seq += 1
        said = {
            "cluster": self.wish["cluster"], "node": self.name, "epoch": self.epoch, "seq": self.seq,
            "time": round(self.made, 3), "kind": kind, "source": "root", "boot": BOOT, "job": job, "step": "0",
            "run": 0, "uid": uid, "body": body,
        }  # fmt: skip
        return json.dumps(said, separators=(",", ":")).encode() + b"\n"


def main(wish: dict[str, Any]) -> dict[str, Any]:
    """Send; return how much, and how long answers took."""
    asker = Asker(Peer(wish["url"], wish["central"], wish["socket"]))
    begun = time.time()
    rng = random.Random(1)
    nodes = [Node(number, wish, begun) for number in range(wish["nodes"])]
    due = [(begun + wish["interval"] + rng.uniform(0, wish["every"]), node.number) for node in nodes]
    heapq.heapify(due)
    took: list[float] = []
    failed: list[str] = []
    late = 0.0

    def send(node: Node, lines: list[bytes]) -> None:
        body, before = batch.pack(lines), time.monotonic()
        target = f"/v1/frames?up={time.time():.3f}&boot={BOOT}"
        for again in range(10):
            try:
                asker.ask("POST", target, body, cluster=wish["cluster"], node=node.name, kind="application/gzip")
                took.append(time.monotonic() - before)
                return
            except PioletError as error:
                failed.append(error.message)
                time.sleep(0.2 * (again + 1))
        raise SystemExit(f"{node.name} cannot send: {failed[-1]}")

    end = begun + wish["seconds"]
    with ThreadPoolExecutor(THREADS) as pool:
        waiting = []
        while due[0][0] < end:
            when, number = heapq.heappop(due)
            time.sleep(max(0.0, when - time.time()))
            late = max(late, time.time() - when)
            lines = nodes[number].lines(time.time())
            waiting.append(pool.submit(send, nodes[number], lines))
            heapq.heappush(due, (when + wish["every"], number))
            waiting = [one for one in waiting if not one.done()]
        for node in nodes:
            waiting.append(pool.submit(send, node, node.lines(end)))
        for one in waiting:
            one.result()
    took.sort()
    frames = sum(node.frames for node in nodes)
    return {
        "frames": frames, "batches": len(took), "again": len(failed), "late_s": late, "unsent": 0,
        "p50_s": took[len(took) // 2], "p99_s": took[len(took) * 99 // 100], "cpu_s": sum(os.times()[:2]),
        "why": sorted(set(failed))[:3],
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
