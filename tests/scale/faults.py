"""Faults from a node's sampler to the central store, as root: `python -m tests.scale.faults [SECONDS]`, usually 60.

Six nodes sample a step twice a second into real journals; real forwarders, a real munged and a real service take them
along. Meanwhile

    node1   has its forwarder killed with SIGKILL, again and again
    node2   has its sampler killed, for a tenth of the time
    node3   has a clock that is an hour ahead, and node4 one that is an hour behind after half of the time
    node5   cannot write to its disk for a tenth of the time, and then has a forwarder that stands still until the
            journal's bound removes what was not delivered
    node6   dies at two thirds of the time

and the service and its keeper are killed with SIGKILL, and their disk is full for a while. Prints of each node how much
of its time is covered, as the data say, and how much was left; and the reasons of all gaps. It returns 1 where these
are further apart than one point, or a gap has no reason.
"""

from __future__ import annotations

import contextlib
import functools
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc  # type: ignore[import-untyped]
from piolet.events import stream
from piolet.events.room import Bounds
from piolet.events.spool import Spool
from piolet.events.stream import Writer
from piolet.observe import gaps, reading
from piolet.observe.reading import StepData

from tests.support.central import ALICE, CENTRAL, CLUSTER, STAFF, Cluster, cluster
from tests.support.waiting import wait_until

PERIOD_S = 0.5
HOUR = 3600.0
NODES = tuple(f"node{number}" for number in range(1, 7))
JOB = 300


def boot() -> str:
    """Return the boot that forwarders here tell of."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class Node(threading.Thread):
    """A node's sampler: what it does between `begin` and `end` (time.time()) is in its faults.

    away    times from which to which it does not sample, as it is killed
    full    likewise, as its disk is full
    dies    when it does nothing any more
    ahead   (from when, s): how far its clock is ahead
    """

    def __init__(self, machines: Cluster, name: str, begin: float, end: float) -> None:
        super().__init__(daemon=True)
        self.node, self.begin, self.end = name, begin, end
        self.directory = machines.top / f"journal-{name}"
        self.acknowledged = machines.top / f"forward-{name}" / "observed.json"
        self.away: list[tuple[float, float]] = []
        self.full: list[tuple[float, float]] = []
        self.dies = float("inf")
        self.ahead = (float("inf"), 0.0)
        self.bound = 4 << 20
        self.number = 0
        self.spool = self.opened()
        self.covered: list[tuple[float, float]] = []

    def opened(self) -> Spool:
        """Return the node's journal, as a sampler that begins opens it."""
        bounds = Bounds(1 << 20, self.bound, 8 << 20)
        writer = Writer(CLUSTER, self.node, boot())
        return Spool(str(self.directory), writer, {}, str(self.acknowledged), bounds, sync_users=True)

    def run(self) -> None:
        """Sample."""
        self.say(
            "observe.step", version=1, interval=PERIOD_S, began=self.clock(self.begin), found=self.clock(), sources={}
        )
        before = time.time()
        killed = False
        while (now := time.time()) < self.end:
            time.sleep(PERIOD_S)
            if now >= self.dies:
                self.spool.close()
                return
            if any(start <= now < end for start, end in self.away):
                if not killed:
                    self.spool.close()
                killed, before = True, time.time()
                continue
            if killed:
                self.spool, killed, before = self.opened(), False, time.time()
                continue
            when = time.time()
            if any(start <= now < end for start, end in self.full):
                self.spool.drop(ALICE, 1, 1000, "the disk")
            else:
                self.frame(when, when - before)
            before = when
        self.say("observe.end", ended=self.clock(self.end))
        self.spool.close()

    def clock(self, when: float | None = None) -> float:
        """Return a time by this node's clock, as it is now."""
        now = time.time()
        return (now if when is None else when) + (self.ahead[1] if now >= self.ahead[0] else 0.0)

    def frame(self, when: float, span: float) -> None:
        """Write a sample."""
        self.number += 1
        rows = [[gpu, f"GPU-{self.node}-{gpu}", 0.5, 400.0] for gpu in range(4)]
        host = {"columns": ["cpu"], "rows": [[float(self.number)]]}
        gpu = {"columns": ["gpu", "uuid", "sm", "power"], "rows": rows}
        self.say("observe.frame", when=when, span=span, gpu=gpu, host=host)
        self.covered.append((when - span, when))

    def say(self, kind: str, when: float | None = None, **body: Any) -> None:
        """Write a record."""
        up = time.clock_gettime(time.CLOCK_BOOTTIME) - (time.time() - when if when is not None else 0.0)
        self.spool.put(kind, "root", at=self.clock(when), job=JOB, step="0", run=0, uid=ALICE, body={**body, "up": up})


def share(spans: list[tuple[float, float]], begin: float, end: float) -> float:
    """Return which part of a time some spans cover."""
    covered, at = 0.0, begin
    for start, stop in sorted(spans):
        covered += max(0.0, min(stop, end) - max(start, at))
        at = max(at, stop)
    return covered / (end - begin)


@contextlib.contextmanager
def small_disk(place: Path) -> Iterator[bool]:
    """Have a file system of its own for what the service keeps; yields whether there is one."""
    place.mkdir()
    options = f"size=16m,uid={CENTRAL},gid={CENTRAL},mode=0700"
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "steps", str(place)], check=False).returncode == 0
    if not made:
        place.rmdir()
    try:
        yield made
    finally:
        if made:
            subprocess.run(["umount", "-l", str(place)], check=False)


class Run:
    """One run of so many seconds."""

    def __init__(self, machines: Cluster, names: Sequence[str], seconds: float, own_disk: bool) -> None:
        self.machines, self.seconds, self.own_disk = machines, seconds, own_disk
        self.names = names
        self.rng = random.Random(1)
        self.kills = {"service": 0, "keeper": 0, "forwarder": 0}
        self.forwarders: dict[str, subprocess.Popen[bytes]] = {}

    def at(self, part: float) -> float:
        """Return the time at which so much of the run is over."""
        return self.begin + part * self.seconds

    def run(self) -> dict[str, Any]:
        """Run, and return what came of it."""
        machines = self.machines
        machines.start()
        usual, stream.FILE_BYTES = stream.FILE_BYTES, 1024
        try:
            return self.faulty()
        finally:
            stream.FILE_BYTES = usual

    def faulty(self) -> dict[str, Any]:
        """Let nodes sample, with all their faults."""
        machines = self.machines
        for name in self.names:
            machines.journal(name, ALICE)
            self.forwarders[name] = machines.forward(name)
        self.begin = time.time() + 1.0
        nodes = {name: Node(machines, name, self.begin, self.at(1.0)) for name in self.names}
        self.nodes = tuple(nodes.values())
        nodes["node2"].away = [(self.at(0.4), self.at(0.5))]
        nodes["node3"].ahead = (0.0, HOUR)
        nodes["node4"].ahead = (self.at(0.5), -HOUR)
        nodes["node5"].full = [(self.at(0.2), self.at(0.3))]
        if "node6" in nodes:
            nodes["node6"].dies = self.at(2 / 3)
        time.sleep(max(0.0, self.begin - time.time()))
        for node in nodes.values():
            node.start()
        still = threading.Thread(target=self.stand_still, args=(nodes["node5"],))
        still.start()
        self.faults()
        for each in (*nodes.values(), still):
            each.join()
        for name in self.names:
            if self.forwarders[name].poll() is not None:
                self.forwarders[name] = machines.forward(name)
        return self.judged(nodes)

    def stand_still(self, node: Node) -> None:
        """Let nobody take a node's journal for a while, which is a few files and no more."""
        time.sleep(max(0.0, self.at(0.35) - time.time()))
        self.forwarders[node.node].kill()
        node.spool._room._bounds = Bounds(1 << 20, 3000, 8 << 20)
        time.sleep(max(0.0, self.at(0.85) - time.time()))
        self.forwarders[node.node].wait()
        self.forwarders[node.node] = self.machines.forward(node.node)

    def faults(self) -> None:
        """Kill, and fill the disk, until the run is over."""
        filler = self.machines.state / "steps" / "filler"
        while (now := time.time()) < self.at(1.0):
            part = (now - self.begin) / self.seconds
            if part > 0.2 and self.kills["service"] < (part - 0.2) * 5:
                self.kill_service()
            if part > 0.3 and self.kills["keeper"] < (part - 0.3) * 4:
                self.kill_keeper()
            if self.own_disk and 0.5 < part < 0.65 and not filler.exists():
                with contextlib.suppress(OSError), filler.open("wb") as file:
                    for _ in range(256):
                        file.write(bytes(1 << 16))
            elif part >= 0.65:
                filler.unlink(missing_ok=True)
            self.forwarders["node1"].kill()
            self.forwarders["node1"].wait()
            self.kills["forwarder"] += 1
            self.forwarders["node1"] = self.machines.forward("node1")
            time.sleep(self.rng.uniform(1.0, 3.0))
        filler.unlink(missing_ok=True)

    def kill_service(self) -> None:
        """Kill the service, and start it again; its keeper ends with it."""
        assert self.machines.process is not None
        self.machines.stop(9)
        self.machines.start()
        self.kills["service"] += 1

    def kill_keeper(self) -> None:
        """Kill what makes tables; the service begins another one."""
        assert self.machines.process is not None
        for task in Path(f"/proc/{self.machines.process.pid}/task").iterdir():
            for word in (task / "children").read_text().split():
                subprocess.run(["kill", "-9", word], check=False)
                self.kills["keeper"] += 1

    def judged(self, nodes: dict[str, Node]) -> dict[str, Any]:
        """Return coverage as the data say it, and as it was."""
        for name, node in nodes.items():
            if node.dies > self.at(1.0):
                wait_until(functools.partial(self.delivered, name), limit_s=120, what=f"the records of {name}")
        step = self.step()
        said = {name: 1.0 - self.missing(step, name) for name in self.names}
        lost = {name: self.lost(step, name) for name in self.names}
        kept = {
            name: share(node.covered, self.begin, self.at(1.0)) - lost[name] for name, node in nodes.items()
        }  # fmt: skip
        rows = step.quality.to_pylist()
        told = [row for row in rows if row["source"] in (gaps.SOURCE, gaps.CLOCK)]
        reasons = sorted({f"{row['node']}: {row['reason']}" for row in told})
        times = step.table("host").group_by(["node", "time"]).aggregate([("cpu", "count")])
        twice = int(pc.sum(pc.greater(times["cpu_count"], 1)).as_py() or 0)
        unexplained = [text for text in reasons if text.endswith(": ") or gaps.UNKNOWN in text]
        worst = max(abs(said[name] - kept[name]) for name in self.names)
        return {
            "covered": {name: {"said": round(said[name], 4), "was": round(kept[name], 4)} for name in self.names},
            "worst": round(worst, 4), "reasons": reasons, "unexplained": unexplained, "twice": twice,
            "kills": self.kills, "disk_was_full": self.own_disk, "simulated": "faults",
        }  # fmt: skip

    def delivered(self, name: str) -> bool:
        """Return whether the service has all of a node's journal."""
        from piolet.events.reader import Reader

        path = self.machines.top / f"forward-{name}" / "observed.json"
        streams = Reader(str(self.machines.top / f"journal-{name}")).streams()
        have = json.loads(path.read_text()) if path.exists() else {}
        return all(have.get(epoch, 0) >= last for epoch, last in streams.items())

    def step(self) -> StepData:
        """Return the step's data, once they are made of all that came."""

        def whole() -> bool:
            found = self.machines.ask(STAFF, "GET", f"/v1/steps?job={JOB}").get("steps", [])
            return bool(found) and found[0]["state"] == "whole"

        wait_until(whole, limit_s=180, what="the tables of the step")
        (path,) = (self.machines.state / "steps").glob(f"????-??-??/{JOB}.0")
        return reading.open_step(path)

    def missing(self, step: StepData, name: str) -> float:
        """Return which part of the run is in gaps of a node."""
        rows = [row for row in step.quality.to_pylist() if row["source"] == gaps.SOURCE and row["node"] == name]
        return share([(row["start"].timestamp(), row["end"].timestamp()) for row in rows], self.begin, self.at(1.0))

    def lost(self, step: StepData, name: str) -> float:
        """Return which part of the run a node sampled, and its journal removed: what the data do not have."""
        table = step.table("host", ["node", "cpu"])
        there = set(table.filter(pc.equal(table["node"], name))["cpu"].to_pylist())
        node = next(one for one in self.nodes if one.node == name)
        gone = [span for number, span in enumerate(node.covered, 1) if float(number) not in there]
        return share(gone, self.begin, self.at(1.0)) if gone else 0.0

    nodes: tuple[Node, ...] = ()


def measure(seconds: float, names: Sequence[str] = NODES) -> dict[str, Any]:
    """Return what came of a run with these nodes; one that dies makes it a minute longer."""
    with cluster(len(NODES)) as machines, small_disk(machines.state / "steps") as own_disk:
        machines.keep = "silent_min = 1\n"
        one = Run(machines, names, seconds, own_disk)
        try:
            return one.run()
        except BaseException:
            print(machines.log(), file=sys.stderr)
            raise


def main(words: list[str]) -> int:
    """Measure, and print."""
    said = measure(float(words[0]) if words else 60.0)
    print(json.dumps(said, indent=1))
    return int(said["worst"] > 0.01 or bool(said["unexplained"]) or bool(said["twice"]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
