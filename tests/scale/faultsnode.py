"""pioletd is killed with SIGKILL while it records a step: `python -m tests.scale.faultsnode [SECONDS]`, usually 60.

As root, on a private cluster of one node whose steps have control groups, with a central service. A step of so many
seconds, which ends with a status of its own, is recorded once a second; meanwhile pioletd as a whole is killed twice
and started again a while later, as a service manager does, and its sampler alone once. Prints how much of the step the
data say is covered, how much the node's journal has, the reasons of all gaps, and the step's exit status. It returns 1
where coverage is further apart than one point, a gap has no reason, or the status is another.
"""

from __future__ import annotations

import json
import os
import pwd
import signal
import sys
import time
from datetime import datetime
from typing import Any

from piolet.events.envelope import Event, decode
from piolet.events.reader import Reader
from piolet.observe import gaps
from piolet.observe.journal import END, FRAME

from tests.cluster import leftovers
from tests.cluster.faults import Faults
from tests.cluster.support import Cluster, no_controllers, running
from tests.scale.faults import share
from tests.support.waiting import wait_until

STATUS = 7
NODE = "node1"
AWAY = 0.08  # of the run, each time
USER = "alice"


def journal(faults: Faults, kind: str) -> list[Event]:
    """Return what the node's journal has of the user's steps, of one kind."""
    reader = Reader(str(faults.root(NODE) / "run/piolet/observe"))
    uid = pwd.getpwnam(USER).pw_uid
    lines = (line for epoch in reader.streams() for line in reader.read(epoch, 0, 100_000, 1 << 30))
    return [event for event in map(decode, lines) if event.uid == uid and event.kind == kind]


def kill_all(faults: Faults, seconds: float) -> None:
    """Kill pioletd as a whole, and start it again so much later."""
    faults.stop_pioletd(NODE, kill=True)
    time.sleep(seconds)
    faults.start_pioletd(NODE)


def kill_sampler(faults: Faults) -> None:
    """Kill the sampler, which pioletd starts again."""
    (sampler,) = [pid for pid in faults.members() if leftovers.status(pid, "Name") == "pioletd-observe"]
    os.kill(sampler, signal.SIGKILL)


def run(cluster: Cluster, seconds: float) -> dict[str, Any]:
    """Run a step, kill, and return what came of it."""
    faults = Faults(cluster, cluster.directory)
    config = cluster.layout.piolet_toml
    config.write_text(config.read_text("utf-8").replace("interval_s = 2", "interval_s = 1"), "utf-8")
    faults.restart_pioletd(NODE)
    begin = time.time()
    step = cluster.start(USER, "srun", "-n1", "sh", "-c", f"sleep {seconds}; exit {STATUS}")
    wait_until(lambda: len(journal(faults, FRAME)) >= 2, 30, "a first sample")
    job = cluster.jobs().split()[0]
    for part in (0.2, 0.45, 0.7):
        time.sleep(max(0.0, begin + part * seconds - time.time()))
        if part == 0.45:
            kill_sampler(faults)
        else:
            kill_all(faults, AWAY * seconds)
    status = step.wait(seconds + 60)
    wait_until(lambda: bool(journal(faults, END)), 30, "the step's end in the journal")

    def exported(table: str) -> list[dict[str, Any]]:
        words = ("piolet", "observe", "export", f"{job}.0", "--table", table, "--format", "json")
        done = cluster.run(USER, *words)
        return [json.loads(line) for line in done.out.splitlines()] if done.status == 0 else []

    wait_until(lambda: bool(exported("judged")), 60, "the tables of the step")
    rows = [row for row in exported("quality") if row["source"] == gaps.SOURCE]
    spans = [tuple(datetime.fromisoformat(row[name]).timestamp() for name in ("start", "end")) for row in rows]
    began = min(event.time - event.body["span"] for event in journal(faults, FRAME))
    ended = journal(faults, END)[-1].body["ended"]
    covered = [(event.time - event.body["span"], event.time) for event in journal(faults, FRAME)]
    said = 1.0 - share([(start, end) for start, end in spans], began, ended)
    was = share(covered, began, ended)
    return {
        "said": round(said, 4), "was": round(was, 4), "worst": round(abs(said - was), 4), "status": status,
        "injected": round(2 * AWAY, 4), "reasons": sorted({row["reason"] for row in rows}),
        "unexplained": [row["reason"] for row in rows if row["reason"] in ("", gaps.UNKNOWN)],
    }  # fmt: skip


def measure(seconds: float) -> dict[str, Any]:
    """Return what came of a run on a cluster of its own."""
    with running("scale-faultsnode", "--nodes", "1", "--cgroups", "--central") as cluster:
        return run(cluster, seconds)


def main(words: list[str]) -> int:
    """Measure, and print."""
    if why := no_controllers():
        print(f"steps have no control groups of their own here: {why}", file=sys.stderr)
        return 2
    said = measure(float(words[0]) if words else 60.0)
    print(json.dumps(said, indent=1))
    return int(said["worst"] > 0.01 or bool(said["unexplained"]) or said["status"] != STATUS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
