"""Measures how data of steps come in, as root: `python -m tests.scale.ingest [MINUTES [NODES]]`, usually 10 and 2,688.

So many nodes of 4 GPUs sample each 10 s, and their forwarders send each 30 s, each in its own time of that, by the
service's door: a signed request, a real munged, batches of records as a node's journal has them. There are steps of all
nodes, of 64 nodes and of one. Prints, of the service and of its keeper, cores and the most memory, how long answers
took, and what of the frames that were sent is in the spool: each of them once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from piolet.observe import reading, spool
from piolet.observe.catalogue import Catalogue

from tests.scale import ingestload
from tests.support.central import CENTRAL, CLUSTER, FORWARD, Cluster, cluster

LOAD = Path(ingestload.__file__)
INTERVAL_S, SENT_S = 10, 30
_TICKS = os.sysconf("SC_CLK_TCK")


def load(machines: Cluster, seconds: float, nodes: int) -> subprocess.Popen[str]:
    """Start the forwarders of so many nodes."""
    wish = {
        "url": machines.url, "socket": machines.socket_of("node1"), "central": CENTRAL, "cluster": CLUSTER,
        "nodes": nodes, "seconds": seconds, "interval": INTERVAL_S, "every": SENT_S,
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-c", LOAD.read_text(), json.dumps(wish)], stdout=subprocess.PIPE, text=True, cwd="/",
        user=FORWARD, group=FORWARD, extra_groups=(),
    )  # fmt: skip


def measure(minutes: float, nodes: int) -> dict[str, Any]:
    """Return what came of it."""
    with cluster(1) as machines:
        with (machines.top / "addresses").open("a") as file:
            file.writelines(f"nid{number:05d} {machines.nodes['node1']}\n" for number in range(nodes))
        process = machines.start()
        before, begun = cpu(process.pid), time.monotonic()
        sender = load(machines, 60 * minutes, nodes)
        out, _ = sender.communicate()
        took = time.monotonic() - begun
        said: dict[str, Any] = json.loads(out)
        own = cpu(process.pid) - before
        keeper = children(process.pid)
        service = {"cores": own / took, "memory_mib": most_memory(process.pid)}
        kept = {"cores": sum(map(cpu, keeper)) / took, "memory_mib": sum(map(most_memory, keeper))}
        machines.stop()
        return {"sent": said, "service": service, "keeper": kept, **found(machines.state / "steps", said["frames"])}


def found(root: Path, frames: int) -> dict[str, Any]:
    """Return how many frames are there, in the spool or in tables already, and how many twice."""
    catalogue = Catalogue(root)
    seen: Counter[tuple[str, int]] = Counter()
    size = spooled = 0
    for row in catalogue.rows():
        for path in sorted((root / "spool" / str(row.id)).glob(f"*{spool.SUFFIX}")):
            size += path.stat().st_size
            for arrived in spool.read(path, row.bytes if int(path.stem) == row.segment else None):
                for record in map(json.loads, arrived.lines):
                    if record["kind"] == "observe.frame":
                        seen[record["node"], round(record["time"] * 1e3)] += 1
                        spooled += 1
        if (root / row.path / "meta.json").exists():
            table = reading.open_step(root / row.path).table("host", ["node", "time"])
            times = table["time"].cast("int64").to_numpy() // 1000
            seen.update(zip(table["node"].to_pylist(), times.tolist(), strict=True))
    there, twice = len(seen), sum(count > 1 for count in seen.values())
    counted = {"steps": len(catalogue.rows()), "frames": there, "lost": frames - there, "twice": twice}
    catalogue.close()
    return {**counted, "in_tables": there - spooled, "bytes_per_spooled_frame": size / max(spooled, 1)}


def cpu(pid: int) -> float:
    """Return the processor time of a process, in seconds."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / _TICKS


def most_memory(pid: int) -> float:
    """Return the most memory that a process had, in MiB."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmHWM:")[2].split()[0]) / 1024


def children(pid: int) -> list[int]:
    """Return the children of a process."""
    found_ = Path(f"/proc/{pid}/task").iterdir()
    return [int(word) for task in found_ for word in (task / "children").read_text().split()]


def main(words: list[str]) -> int:
    """Measure, and print; returns 1 where a frame was lost, or is there twice."""
    minutes, nodes = [*map(float, words), *(10.0, 2688.0)[len(words) :]]
    said = measure(minutes, int(nodes))
    print(json.dumps(said, indent=1))
    return int(bool(said["lost"] or said["twice"] or said["sent"]["unsent"]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
