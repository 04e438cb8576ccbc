"""What a node's watcher and forwarder cost, as root: `python -m tests.scale.nodecosts [SECONDS]`.

A private cluster of one node with a central service and the heartbeat that is the default; the watcher looks at each
process of this machine then. Prints the share of a core, by the scheduler's count, and memory, and ends with an error
above 0.1 % of a core or 25 MB.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from tests.benchmarks import events
from tests.cluster.support import Cluster, running
from tests.support.waiting import wait_until
from tools.cluster.state import load

CORE_PERCENT, MEMORY_MB = 0.1, 25.0


def _children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(word) for word in (task / "children").read_text().split()]
    return found + [one for child in found for one in _children(child)]


def _pids(cluster: Cluster) -> dict[str, str]:
    state = load(cluster.layout.state_file)
    assert state is not None
    forwarder, daemon = state.find("piolet-forward-node1"), state.find("pioletd-node1")
    assert forwarder is not None and daemon is not None
    names: dict[str, str] = {}

    def there() -> bool:
        names.update({events.name(str(pid)): str(pid) for pid in _children(daemon.pid)})
        return "pioletd-watcher" in names

    wait_until(there, what="the watcher")
    return {"forwarder": str(forwarder.pid), "watcher": names["pioletd-watcher"]}


def main(words: list[str]) -> int:
    """Measure, and print."""
    seconds = float(words[0]) if words else 120.0
    with running("scale-node", "--nodes", "1", "--central") as cluster:
        path = cluster.layout.piolet_toml
        path.write_text(path.read_text().replace("heartbeat_s = 5\n", "heartbeat_s = 60\n"))
        for verb in ("stop-pioletd", "start-pioletd"):
            cluster.tool(verb, "node1")
        pids = _pids(cluster)
        time.sleep(10)  # what they do when they start
        before = {name: events.seconds_of(pid) for name, pid in pids.items()}
        time.sleep(seconds)
        found = {
            name: {"core_percent": (events.seconds_of(pid) - before[name]) / seconds * 100, **events.memory(pid)}
            for name, pid in pids.items()
        }
    print(json.dumps(found, indent=1))
    return int(any(one["core_percent"] >= CORE_PERCENT or one["rss_mb"] >= MEMORY_MB for one in found.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
