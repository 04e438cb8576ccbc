"""Measures the central service, as root: `python -m tests.scale.central rate | size [MILLIONS...] | node`.

rate   10,000 node names through a real munged, with the rules that Piolet comes with: a minute of 1,000 batches of 2 to
       50 records, then batches of 500 for half a minute
size   bytes a record on disk with indexes, and how long `piolet central node` takes, with 1, 2 and 5 million records;
       `--alone`: of nodes at rest, whose heartbeats come one by one, as small as batches are; `--beats 5`: five by
       five, as forwarders send them that are not told otherwise
node   how long it takes to read a week of a node that has 10,080 heartbeats and 2,000 other records, 1,500 of these
       users': as `piolet central node` reads it, and as `piolet node` does; heartbeats five by five, or `--beats 1`

`--postgresql` takes a PostgreSQL of its own instead of SQLite.
"""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from piolet.central.store.database import connect
from piolet.central.store.reader import Reader
from piolet.central.store.writer import Arrival, Writer
from piolet.events.envelope import KERNEL, ROOT, SITE, SOURCES, Event

from tests.scale import centralload
from tests.support.central import CENTRAL, CLUSTER, FORWARD, Cluster, cluster
from tests.support.postgres import postgres

NODES = 10_000
LOAD = Path(centralload.__file__)


@contextlib.contextmanager
def store(postgresql: bool) -> Iterator[str]:
    """Yield the address of a PostgreSQL, or '' for SQLite."""
    if not postgresql:
        yield ""
        return
    with postgres() as server:
        yield server.url


def load(machines: Cluster, seed: int, **wish: Any) -> subprocess.Popen[str]:
    """Start a process that sends."""
    wish |= {
        "url": machines.url, "socket": machines.socket_of("node1"), "central": CENTRAL, "cluster": CLUSTER,
        "nodes": NODES, "seed": seed,
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-c", LOAD.read_text(), json.dumps(wish)], stdout=subprocess.PIPE, text=True, cwd="/",
        user=FORWARD, group=FORWARD, extra_groups=(),
    )  # fmt: skip


def rate(postgresql: bool, seconds: float = 60.0) -> dict[str, Any]:
    """Return what came of a paced load and of one without a pace."""
    with store(postgresql) as url, cluster(1, url) as machines:
        with (machines.top / "addresses").open("a") as file:
            file.writelines(f"nid{number:05d} {machines.nodes['node1']}\n" for number in range(NODES))
        machines.more["prometheus"] = "true"
        machines.start()
        paced = _of(load(machines, 1, least=2, most=50, seconds=seconds, pace=1000 / 60))
        paced["judge_p99"] = _delay(machines)
        paced["memory"] = _memory(machines)
        fast = _of(load(machines, 2, least=500, most=500, seconds=seconds / 2, pace=0))
        begun = time.monotonic()
        while not machines.ask(0, "GET", "/v1/status")["caught_up"]:
            time.sleep(0.1)
        fast["behind_s"] = time.monotonic() - begun
        fast["judge_p99"] = _delay(machines)
        fast["memory"] = _memory(machines)
        said = machines.ask(0, "GET", "/v1/status")
        assert said["records"] == paced["records"] + fast["records"], said
        return {"paced": paced, "fast": fast, "conclusions": said["conclusions"]}


def _of(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, _ = process.communicate()
    said: dict[str, Any] = json.loads(out)
    return said


def _delay(machines: Cluster) -> float:
    with urllib.request.urlopen(f"{machines.url}/metrics", timeout=10) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith("piolet_central_judge_delay_seconds "):
                return float(line.split()[1])
    raise AssertionError("no such metric")


def _memory(machines: Cluster) -> float:
    assert machines.process is not None
    text = Path(f"/proc/{machines.process.pid}/status").read_text()
    return int(text.partition("VmHWM:")[2].split()[0]) / 1024


def size(postgresql: bool, millions: list[float], beats: int = 0) -> Iterator[dict[str, Any]]:
    """Yield, for each number of millions of records, what a store of them takes."""
    with tempfile.TemporaryDirectory() as name, store(postgresql) as url:
        engine = connect(url or f"sqlite:///{name}/store.sqlite", create=True)
        writer, rng, seqs = Writer(engine), random.Random(1), dict[int, int]()
        count, when = 0, 1.79e9
        for wanted in sorted(millions):
            begun, before = time.monotonic(), count
            while count < wanted * 1e6:
                arrivals = []
                for _ in range(20):
                    node = rng.randrange(NODES)
                    first, many = seqs.get(node, 0) + 1, beats or rng.randint(2, 50)
                    when += 0.05
                    make = centralload.heartbeat if beats else centralload.record
                    records = [
                        make(rng, CLUSTER, f"nid{node:05d}", f"{node:016x}", first + index, when + 60 * index)
                        for index in range(many)
                    ]
                    seqs[node] = first + many - 1
                    count += many
                    arrivals.append(Arrival(f"nid{node:05d}", records, when + 60 * many, offset=rng.gauss(0, 0.2)))
                writer.append(arrivals)
            took = (time.monotonic() - begun) / max(1, count - before)
            yield {
                "records": count,
                "bytes": _bytes(engine) / count,
                "written_us": took * 1e6,
                **_asked(engine, rng, when),
            }
        engine.dispose()


def _bytes(engine: sa.Engine) -> int:
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            connection.execute(sa.text("pragma wal_checkpoint(truncate)"))
            return Path(engine.url.database or "").stat().st_size
        return int(connection.scalar(sa.text("select pg_database_size(current_database())")) or 0)


def _asked(engine: sa.Engine, rng: random.Random, when: float) -> dict[str, float]:
    reader = Reader(engine, CLUSTER)
    took = []
    for _ in range(50):
        begun = time.monotonic()
        reader.records(f"nid{rng.randrange(NODES):05d}", when - 7 * 86400, 1000)
        took.append(time.monotonic() - begun)
    took.sort()
    return {"node_s": took[len(took) // 2], "node_longest_s": took[-1]}


def week(engine: sa.Engine, beats: int) -> float:
    """Write a week of node1 of which heartbeats come so many at a time; return when it ends."""
    rng, writer, end = random.Random(1), Writer(engine), 1.79e9
    seqs, pending, arrivals = Counter[str](), list[Event](), list[Arrival]()

    def made(epoch: str, kind: str, source: str, **more: Any) -> Event:
        seqs[epoch] += 1
        return Event(CLUSTER, "node1", epoch, seqs[epoch], end, kind, source, centralload.BOOT, **more)

    for minute in range(7 * 1440):
        end += 60
        pending.append(made("0" * 16, "node.heartbeat", "root", body={"uptime_s": 60 * minute}))
        fault = rng.random() < 500 / 10_080
        if fault:
            flap = {"state": "down", "flaps": 1, "rate": 200}
            pending.append(made("0" * 16, "link.flap", "kernel", severity="warn", subject="port:mlx5_0/1", body=flap))
        if fault or len(pending) >= beats:
            arrivals.append(Arrival("node1", pending, end))
            pending = []
        if rng.random() < 1500 / 10_080:
            user = rng.randrange(3)
            body = {"status": 1, "why": "exit", "task": 0, "tasks": 8, "order": 0}
            of = {"uid": 1000 + user, "job": 1 + minute, "step": "0", "run": 0, "body": body}
            arrivals.append(Arrival("node1", [made(f"{1 + user:016x}", "step.outcome", "user", **of)], end))
        if len(arrivals) >= 500 or minute == 7 * 1440 - 1:
            writer.append([*arrivals, *([Arrival("node1", pending, end)] if minute == 7 * 1440 - 1 else [])])
            arrivals = []
    return end


def node(postgresql: bool, beats: int) -> dict[str, Any]:
    """Return how many milliseconds reading that week takes, of 50 times: the middle, the longest, the processor's."""
    with tempfile.TemporaryDirectory() as name, store(postgresql) as url:
        engine = connect(url or f"sqlite:///{name}/store.sqlite", create=True)
        end = week(engine, beats)
        reader, found = Reader(engine, CLUSTER), {}
        for what, sources in (("central node", SOURCES), ("node", (KERNEL, ROOT, SITE))):
            took, own = [], time.process_time()
            for _ in range(50):
                begun = time.monotonic()
                latest = reader.records("node1", end - 7 * 86400, 1000, sources)
                took.append(1000 * (time.monotonic() - begun))
            own = 1000 * (time.process_time() - own) / 50
            found[what] = {"middle": sorted(took)[25], "longest": max(took), "processor": own, "beats": latest.beats}
        engine.dispose()
        return found


def main(words: list[str]) -> int:
    """Measure, and print."""
    postgresql, beats = "--postgresql" in words, int("--alone" in words)
    if "--beats" in words:
        beats = int(words.pop(words.index("--beats") + 1))
    words = [word for word in words if not word.startswith("--")]
    if words[:1] == ["rate"]:
        print(json.dumps(rate(postgresql), indent=1))
        return 0
    if words[:1] == ["size"]:
        for row in size(postgresql, [float(word) for word in words[1:]] or [1, 2, 5], beats):
            print(json.dumps(row), flush=True)
        return 0
    if words[:1] == ["node"]:
        print(json.dumps(node(postgresql, beats or 5), indent=1))
        return 0
    print(__doc__)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
