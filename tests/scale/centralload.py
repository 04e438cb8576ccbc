"""Sends batches as so many nodes' forwarders: a process of its own, which prints JSON. Argument: an object of JSON.

url, socket, central, cluster   of the service
nodes       how many names: nid00000, …
least, most of records in a batch
seconds     for how long
pace        batches a second; 0: as fast as they are taken
seed
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from typing import Any

from piolet.base.errors import PioletError
from piolet.events import batch
from piolet.events.envelope import Event, encode
from piolet.transport.asking import Asker, Peer

BOOT = "0b1c2d3e-0000-4000-8000-000000000000"
XIDS = (13, 31, 43, 45, 48, 63, 64, 74, 79, 94, 95)


def heartbeat(rng: random.Random, cluster: str, node: str, epoch: str, seq: int, when: float) -> Event:
    """Return what a node at rest says."""
    body = {"uptime_s": int(when) % 10**7}
    return Event(
        cluster, node, epoch, seq, round(when + rng.random(), 3), "node.heartbeat", "root", body=body, boot=BOOT
    )


def record(rng: random.Random, cluster: str, node: str, epoch: str, seq: int, when: float) -> Event:
    """Return a record, of what nodes say and how often: heartbeats, ends of tasks, verdicts, now and then an XID."""
    what = rng.random()
    common: dict[str, Any] = {"boot": BOOT}
    body: dict[str, Any]
    if what < 0.4:
        body = {"uptime_s": int(when) % 10**7}
        return Event(cluster, node, epoch, seq, when, "node.heartbeat", "root", body=body, **common)
    common |= {
        "job": rng.randrange(1, 10**6),
        "step": str(rng.randrange(3)),
        "run": 0,
        "uid": 1000 + rng.randrange(300),
    }
    gpu = f"gpu:GPU-{node}-{rng.randrange(4)}"
    if what < 0.85:
        bad = rng.random() < 0.1
        body = {"task": rng.randrange(64), "status": None if bad else 0, "signal": 11 if bad else None,
                "why": "signal" if bad else "exit", "tasks": rng.randrange(1, 8)}  # fmt: skip
        return Event(cluster, node, epoch, seq, when, "step.outcome", "user", body=body, **common)
    if what < 0.98:
        bad = rng.random() < 0.02
        body = {"eval": rng.choice(("gemm", "hbm", "pcie", "nccl")), "code": "gemm", "origin": "built-in",
                "plan": f"{rng.getrandbits(256):064x}", "protocol": "quick", "digest": "b" * 64,
                "state": "fail" if bad else "pass", "outcome": "bad" if bad else "good", "judge": "limit",
                "value": round(rng.uniform(40, 70), 3), "unit": "TFLOP/s", "limit": 55.0}  # fmt: skip
        return Event(cluster, node, epoch, seq, when, "vet.verdict", "user", subject=gpu, body=body, **common)
    body = {"xid": rng.choice(XIDS), "pci": "0000:3b:00.0", "text": "NVRM: Xid (PCI:0000:3b:00): a line"}
    return Event(
        cluster, node, epoch, seq, when, "gpu.xid", "kernel", severity="fatal", subject=gpu, body=body, boot=BOOT
    )


def main(wish: dict[str, Any]) -> dict[str, Any]:
    """Send; return how much, and how long answers took."""
    rng = random.Random(wish["seed"])
    asker = Asker(Peer(wish["url"], wish["central"], wish["socket"]))
    seqs: dict[str, int] = {}
    took, sent, failed = [], 0, 0
    begun = time.monotonic()
    due = begun
    while time.monotonic() < begun + wish["seconds"]:
        if wish["pace"]:
            due += 1 / wish["pace"]
            time.sleep(max(0.0, due - time.monotonic()))
        node = f"nid{rng.randrange(wish['nodes']):05d}"
        epoch = f"{wish['seed']:08x}{int(node[3:]):08x}"
        first = seqs.get(node, 0) + 1
        count = rng.randint(wish["least"], wish["most"])
        now = time.time()
        lines = [encode(record(rng, wish["cluster"], node, epoch, first + index, now)) for index in range(count)]
        before = time.monotonic()
        try:
            asker.ask("POST", "/v1/events", batch.pack(lines), cluster=wish["cluster"], node=node)
        except PioletError as error:
            failed += 1
            print(error.render(), file=sys.stderr)
            continue
        took.append(time.monotonic() - before)
        seqs[node] = first + count - 1
        sent += count
    took.sort()
    return {
        "batches": len(took), "records": sent, "failed": failed, "seconds": time.monotonic() - begun,
        "p50": took[len(took) // 2], "p99": took[len(took) * 99 // 100], "cpu": sum(os.times()[:2]),
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
