"""Runs a former release's programs against this one's, as root: `python -m tests.scale.wire BIN [RECORDS]`.

BIN is where the former release's python, piolet-forward and piolet-central are. A spool that its node wrote and its
forwarder go to this service; this node's and forwarder go to its service, whose store is then this service's. It ends
with an error if a record is lost, is there twice or says something else.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from piolet.central.store.database import connect
from piolet.central.store.reader import Reader
from piolet.events.envelope import UNNUMBERED, encode

from tests.support.central import BIN, BOOT, CLUSTER, FORWARD, Cluster, cluster
from tests.support.waiting import wait_until

_WRITE = """
import json, os, sys
from piolet.events.envelope import Event, encode
from piolet.events.kinds import KINDS
from piolet.events.stream import Stream, Writer
place, cluster, node, boot, count, epoch, seq = sys.argv[1:]
kinds = [kind for kind in KINDS.values() if not kind.name.startswith(("slurm.", "site."))]
stream = Stream(place, None, Writer(cluster, node, boot))
for number in range(int(count)):
    kind = kinds[number % len(kinds)]
    event = Event(cluster, node, epoch, int(seq), 1.7e9 + number, kind.name, kind.sources[0], boot=boot,
                  uid=1000 if kind.sources[0] == "user" else None, body={key: number for key in kind.body})
    assert stream.append([encode(event)]) == 1
"""


def _spool(machines: Cluster, python: Path, count: int) -> list[str]:
    """Have a release write a node's spool; return its lines."""
    place = machines.top / "spool-node1"
    place.mkdir(exist_ok=True)
    os.chown(place, 0, FORWARD)
    place.chmod(0o2750)
    command = [str(python), "-c", _WRITE, str(place), CLUSTER, "node1", BOOT, str(count), *map(str, UNNUMBERED)]
    subprocess.run(command, check=True, cwd="/")
    return [line for file in sorted(place.iterdir()) for line in file.read_text().splitlines()]


def _here(machines: Cluster) -> list[str]:
    return [encode(one.event).decode().strip() for one in Reader(connect(machines.store), CLUSTER).arrivals()]


def _acknowledged(machines: Cluster, count: int) -> Callable[[], bool]:
    path = machines.top / "forward-node1" / "acknowledged.json"
    return lambda: path.exists() and sum(json.loads(path.read_text()).values()) == count


def former_node(former: Path, count: int) -> None:
    """Have the former node's records come to this service."""
    with cluster(1) as machines:
        lines = _spool(machines, former / "python", count)
        machines.start()
        machines.forward("node1", [str(former / "piolet-forward")])
        wait_until(_acknowledged(machines, count), limit_s=120, what="the former forwarder")
        assert _here(machines) == lines
    print(f"former node and forwarder, this service: {count} records sent, {len(lines)} here, each once")


def former_service(former: Path, count: int) -> None:
    """Have this node's records come to the former service, whose store this one goes on with."""
    with cluster(1) as machines:
        _spool(machines, BIN / "python", count)
        machines.start(program=[str(former / "piolet-central")])
        machines.forward("node1")
        wait_until(_acknowledged(machines, count), limit_s=120, what="the former service")
        print(f"this node and forwarder, former service: {count} records sent and acknowledged")
        machines.stop()
        machines.start()
        _spool(machines, BIN / "python", count)  # a stream more, since who writes began again
        wait_until(_acknowledged(machines, 2 * count), limit_s=120, what="this service")
        lines = {line for file in (machines.top / "spool-node1").iterdir() for line in file.read_text().splitlines()}
        here = _here(machines)
        assert len(here) == 2 * count and set(here) == lines
    print(f"its store under this service, {count} more: {len(here)} here, each once")


def main(words: list[str]) -> int:
    """Do both."""
    if not words:
        print(__doc__)
        return 2
    former, count = Path(words[0]), int(words[1]) if len(words) > 1 else 2000
    former_node(former, count)
    former_service(former, count)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
