"""From a node's disk to the store: each record once, over whatever goes away meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from piolet.central.store.database import connect
from piolet.central.store.reader import Reader

from tests.support.central import CENTRAL, CLUSTER, Cluster, cluster, line
from tests.support.postgres import Postgres, postgres, programs
from tests.support.waiting import wait_until


@pytest.fixture
def machines() -> Iterator[Cluster]:
    """A cluster of one node, whose service does not run yet."""
    with cluster(1) as made:
        yield made


def stored(machines: Cluster) -> list[tuple[str, int]]:
    """Return epoch and number of every record of the store."""
    reader = Reader(connect(machines.store), CLUSTER)
    return sorted((one.event.epoch, one.event.seq) for one in reader.arrivals())


def acknowledged(machines: Cluster) -> dict[str, int]:
    """Return what the forwarder says was delivered."""
    try:
        said: dict[str, int] = json.loads((machines.top / "forward-node1" / "acknowledged.json").read_text())
    except FileNotFoundError:
        return {}
    return said


def test_all_streams_arrive(machines: Cluster) -> None:
    first = machines.spool("node1")
    first.append([line("node1") for _ in range(1200)])
    machines.start()
    machines.forward("node1")
    wait_until(lambda: acknowledged(machines) == {first.epoch: 1200}, what="delivery")
    first.append([line("node1")])
    wait_until(lambda: acknowledged(machines) == {first.epoch: 1201}, what="delivery")
    assert stored(machines) == [(first.epoch, seq) for seq in range(1, 1202)]


def test_the_service_was_away(machines: Cluster) -> None:
    stream = machines.spool("node1")
    stream.append([line("node1") for _ in range(10)])
    forwarder = machines.forward("node1")
    wait_until(lambda: "does not answer" in machines.log("node1.log"), what="a word of the forwarder")
    machines.start()
    wait_until(lambda: acknowledged(machines) == {stream.epoch: 10}, limit_s=40, what="delivery")
    machines.stop(signal.SIGKILL)
    stream.append([line("node1") for _ in range(10)])
    machines.start()
    wait_until(lambda: acknowledged(machines) == {stream.epoch: 20}, limit_s=40, what="delivery")
    assert forwarder.poll() is None
    assert len(stored(machines)) == 20


class Copy:
    """What a site does with its data base by docs/central.md: a copy while the service runs, and that put back."""

    def __init__(self, machines: Cluster, server: Postgres | None) -> None:
        self.machines, self.server = machines, server
        self.place = machines.top / "backup"

    def make(self) -> None:
        if self.server is not None:
            self.server.call("pg_dump", *self._to(), "-f", str(self.place))
            return
        with sqlite3.connect(self._file()) as ours, sqlite3.connect(self.place) as copy:
            ours.backup(copy)  # what `.backup` of the command does
        ours.close()
        copy.close()

    def put_back(self) -> None:
        if self.server is not None:
            self.server.empty()
            self.server.call("psql", *self._to(), "-q", "-v", "ON_ERROR_STOP=1", "-f", str(self.place))
            return
        for path in self.machines.state.glob("central.sqlite*"):
            path.unlink()
        shutil.copy(self.place, self._file())
        os.chown(self._file(), CENTRAL, CENTRAL)

    def _file(self) -> Path:
        return self.machines.state / "central.sqlite"

    def _to(self) -> list[str]:
        assert self.server is not None
        return ["-h", str(self.server.top), "-U", "piolet", "postgres"]


@pytest.fixture(params=["sqlite", "postgresql"])
def copied(request: pytest.FixtureRequest) -> Iterator[Copy]:
    """A cluster of one node, and how its data base is copied and put back."""
    if request.param == "sqlite":
        with cluster(1) as machines:
            yield Copy(machines, None)
        return
    if programs() is None:
        pytest.skip("PostgreSQL is not installed")
    with postgres() as server, cluster(1, server.url) as machines:
        machines.top.chmod(0o777)  # PostgreSQL's account writes its copy there
        yield Copy(machines, server)


def test_a_service_that_is_restored_from_a_backup_gets_the_rest_again(copied: Copy) -> None:
    """Restored from yesterday: 0 lost, 0 twice."""
    machines = copied.machines
    stream = machines.spool("node1")
    stream.append([line("node1") for _ in range(700)])
    machines.start()
    machines.forward("node1")
    wait_until(lambda: acknowledged(machines) == {stream.epoch: 700}, what="delivery")
    copied.make()
    stream.append([line("node1") for _ in range(600)])
    wait_until(lambda: acknowledged(machines) == {stream.epoch: 1300}, limit_s=40, what="delivery")
    machines.stop()
    copied.put_back()
    assert len(stored(machines)) == 700
    machines.start()
    stream.append([line("node1")])
    wait_until(lambda: acknowledged(machines) == {stream.epoch: 1301}, limit_s=60, what="delivery")
    assert stored(machines) == [(stream.epoch, seq) for seq in range(1, 1302)]


def test_what_is_gone_from_the_node_is_counted(machines: Cluster) -> None:
    """Its spool had no room for what the service did not take."""
    stream = machines.spool("node1")
    for _ in range(4):
        stream.append([line("node1", body={"uptime_s": 1, "pad": "x" * 12000}) for _ in range(100)])
    files = sorted((machines.top / "spool-node1").iterdir())
    assert len(files) > 2
    gone = int(files[1].name.split("-")[2].partition(".")[0]) - 1
    files[0].unlink()
    machines.start()
    machines.forward("node1")
    wait_until(lambda: acknowledged(machines) == {stream.epoch: 400}, limit_s=40, what="delivery")
    said = machines.ask(0, "GET", "/v1/node?name=node1")
    assert [(one["first"], one["last"]) for one in said["gaps"]] == [(1, gone)]
    assert stored(machines) == [(stream.epoch, seq) for seq in range(gone + 1, 401)]
    assert machines.ask(0, "GET", "/v1/status")["gone"] == gone


def test_a_damaged_line_holds_nothing_up(machines: Cluster) -> None:
    stream = machines.spool("node1")
    stream.append([line("node1") for _ in range(5)])
    (path,) = (machines.top / "spool-node1").iterdir()
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b'"source":"root"', b'"source":"ro\x00t"')
    path.write_bytes(b"".join(lines))
    machines.start()
    machines.forward("node1")
    wait_until(lambda: acknowledged(machines) == {stream.epoch: 5}, what="delivery")
    assert [seq for _, seq in stored(machines)] == [1, 2, 4, 5]
    assert machines.ask(0, "GET", "/v1/status")["gone"] == 1
