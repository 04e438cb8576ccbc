"""Kills forwarder, service and database while records flow, and compares what was sent with what is here."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from piolet.central import rulefiles
from piolet.central.conclusions import encode
from piolet.central.rules.engine import Engine
from piolet.central.store.database import connect
from piolet.central.store.reader import Reader

from tests.support import traced
from tests.support.central import CLUSTER, Cluster, line
from tests.support.postgres import Postgres
from tests.support.waiting import wait_until

TEXT = Path(traced.__file__).read_text()
SERVICE, FORWARDER, DATABASE = "piolet-central", "piolet-forward", "database"
_DIES_S, _STARTS_S = 3.0, 20.0


class Killing:
    """One run. `histogram` is where processes were when they were killed."""

    def __init__(self, machines: Cluster, rng: random.Random, database: Postgres | None = None) -> None:
        self._machines, self._rng, self._database = machines, rng, database
        self.histogram: Counter[str] = Counter()
        self._spool = machines.spool("node1")
        self.sent = 0
        self._states = {}
        for program in (SERVICE, FORWARDER):
            path = machines.top / f"{program}.state"
            path.write_bytes(traced.STATE.pack(-1, -1))
            path.chmod(0o666)
            self._states[program] = path
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        for program in (SERVICE, FORWARDER):
            self._start(program)

    def _start(self, program: str) -> None:
        command = [sys.executable, "-c", TEXT, str(self._states[program]), program]
        if program == SERVICE:
            self._running[program] = self._machines.start(program=command, wait=False)
        else:
            self._running[program] = self._machines.forward("node1", program=command)

    def write(self, count: int) -> None:
        """Have the node write records; each says which it is."""
        lines = []
        for _ in range(count):
            self.sent += 1
            if self.sent % 50 == 0:
                lost = {"subject": f"gpu:GPU-{self.sent % 40}", "body": {"pci": f"record {self.sent}"}}
                lines.append(line("node1", "gpu.lost", "kernel", severity="fatal", **lost))
            else:
                lines.append(line("node1", body={"uptime_s": self.sent}))
        assert self._spool.append(lines) == count

    def kill(self, what: str) -> None:
        """Kill one of them, at a point that is drawn, and start it again."""
        if what == DATABASE:
            assert self._database is not None
            time.sleep(self._rng.uniform(0, 0.3))
            self._database.kill()
            _, last = traced.STATE.unpack(self._states[SERVICE].read_bytes())
            self.histogram[f"{DATABASE}, the service being {self._name(SERVICE, last)}"] += 1
            self._database.start()
            return
        point = self._rng.randrange(len(traced.points(what)))
        self._wish(what, point)
        process = self._running[what]
        self._passes(what, process)
        try:
            process.wait(_DIES_S)
        except subprocess.TimeoutExpired:
            process.kill()  # nothing brought it there
            process.wait()
        if process.returncode != -signal.SIGKILL:
            assert process.returncode == 1 and self._database is not None, self._machines.log()
            self.histogram[f"{what} ended since the data base was away"] += 1
        _, last = traced.STATE.unpack(self._states[what].read_bytes())
        self.histogram[f"{what}, {self._name(what, last)}"] += 1
        self._wish(what, -1)
        self._start(what)

    def _passes(self, what: str, process: subprocess.Popen[bytes]) -> None:
        """Wait until it is somewhere at all: on a machine that is busy a start alone takes as long as dying may."""
        limit = time.monotonic() + _STARTS_S
        while process.poll() is None and time.monotonic() < limit:
            if traced.STATE.unpack(self._states[what].read_bytes())[1] >= 0:
                return
            time.sleep(0.05)

    def _wish(self, what: str, point: int) -> None:
        with self._states[what].open("r+b") as file:
            file.write(traced.STATE.pack(point, -1))

    def _name(self, program: str, point: int) -> str:
        return "before its first point" if point < 0 else traced.points(program)[point]

    def delivered(self, limit_s: float = 120.0) -> None:
        """Wait until everything is delivered."""
        path = self._machines.top / "forward-node1" / "acknowledged.json"
        wanted = f'"{self._spool.epoch}": {self.sent}'

        def there() -> bool:
            for program, process in self._running.items():
                if process.poll() is not None:
                    assert self._database is not None, self._machines.log()
                    self._start(program)  # as its unit does
            return path.exists() and wanted in path.read_text()

        wait_until(there, limit_s, "delivery")

    def compare(self) -> None:
        """Raise AssertionError unless each record is here once, as it was sent, and its conclusions are too."""
        engine = connect(self._machines.store)
        try:
            reader = Reader(engine, CLUSTER)
            judge = Engine(rulefiles.read(""))
            found, expected = [], []
            for stored in reader.arrivals():
                event = stored.event
                said = event.body.get("uptime_s") or int(str(event.body["pci"]).removeprefix("record "))
                assert event.epoch == self._spool.epoch and event.seq == said
                found.append(event.seq)
                expected += [encode(one) for one in judge.take(event, stored.received)]
            assert found == list(range(1, self.sent + 1)), "lost or twice"
            wait_until(lambda: len(reader.conclusions()) >= len(expected), 30, "conclusions")
            assert reader.conclusions() == expected
            assert expected, "nothing was concluded: the comparison says nothing of conclusions"
        finally:
            engine.dispose()


def run(machines: Cluster, kills: int, records: int, seed: int, database: Postgres | None = None) -> Counter[str]:
    """Kill so often while so many records flow; return where it struck.

    Raises AssertionError: something is lost, is there twice, or was concluded otherwise.
    """
    rng = random.Random(seed)
    killing = Killing(machines, rng, database)
    victims = (SERVICE, FORWARDER, *([DATABASE] if database else []))
    for number in range(kills):
        killing.write(records // kills + (number < records % kills))
        killing.kill(victims[number % len(victims)])
        if os.environ.get("PIOLET_TEST_TELL") and number % 50 == 49:
            print(f"{number + 1} kills", file=sys.stderr, flush=True)
    killing.delivered()
    killing.compare()
    return killing.histogram
