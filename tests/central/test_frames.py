"""Data of steps, from nodes' forwarders to who may read them; and who may not, and what is refused."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import io
import json
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest
from piolet.events import batch
from piolet.events.envelope import UNNUMBERED, Event, encode

from tests.support.central import ALICE, CENTRAL, CLUSTER, STAFF, Cluster, cluster, raw, send
from tests.support.frames import frame, whole
from tests.support.waiting import wait_until

BOB = ALICE + 1
EPOCH = "00000000000000f1"
TARGET = "/v1/frames"


@pytest.fixture(scope="module")
def machines() -> Iterator[Cluster]:
    """A cluster of two nodes, whose service runs."""
    with cluster(2) as made:
        made.start()
        yield made


def sent(machines: Cluster, node: str, events: list[Event], **wish: Any) -> dict[str, Any]:
    """Send frames as a node's forwarder does."""
    return send(machines, node, events, target=TARGET, **wish)


def steps(machines: Cluster, asker: int, **said: str) -> list[dict[str, Any]]:
    """Return the steps that a user sees."""
    query = "&".join(f"{name}={value}" for name, value in said.items())
    found: list[dict[str, Any]] = machines.ask(asker, "GET", f"/v1/steps?{query}" if query else "/v1/steps")["steps"]
    return found


def of_state(machines: Cluster, job: int, state: str) -> bool:
    """Return whether a job's steps are there, and all in a state."""
    found = steps(machines, STAFF, job=str(job))
    return bool(found) and all(one["state"] == state for one in found)


def fetched(machines: Cluster, uid: int, name: str, file: str) -> bytes:
    """Return a file of a step, as a user reads it."""
    data, size = b"", 1
    while len(data) < size:
        said = machines.ask(uid, "GET", f"/v1/stepfile?name={name}&file={file}&offset={len(data)}")
        size = said["size"]
        data += base64.b64decode(said["data"])
    return data


def test_frames_become_a_step_that_its_user_reads(machines: Cluster) -> None:
    start = time.time() - 60
    for node, epoch in (("node1", "00000000000001a1"), ("node2", "00000000000001a2")):
        events = whole(node, start, 6, epoch, job=201, uid=ALICE)
        said = sent(machines, node, events)
        assert said.get("have") == {epoch: 8}, (said, machines.log())
    wait_until(lambda: of_state(machines, 201, "whole"), limit_s=60, what="the tables of the step")
    table = pq.read_table(io.BytesIO(fetched(machines, ALICE, "201.0", "gpu.parquet")))
    assert len(table) == 2 * 4 * 6 and set(table["node"].to_pylist()) == {"node1", "node2"}
    files = machines.ask(ALICE, "GET", "/v1/step?name=201.0")["files"]
    assert {"meta.json", "gpu.parquet", "host.parquet", "rollup.parquet", "quality.parquet"} <= files.keys()
    assert steps(machines, ALICE)[0]["name"] == "201.0"


def test_another_user_can_neither_read_nor_list_nor_guess(machines: Cluster) -> None:
    """The answer about a step of another's is, to the letter, that about none; and no file lies open."""
    start = time.time() - 60
    sent(machines, "node1", whole("node1", start, 3, "00000000000002a1", job=202, uid=ALICE))
    wait_until(lambda: of_state(machines, 202, "whole"), limit_s=60, what="the tables of the step")
    assert machines.ask(ALICE, "GET", "/v1/step?name=202.0")["name"] == "202.0"
    assert steps(machines, BOB) == [] and steps(machines, BOB, uid=str(ALICE)) == []
    assert steps(machines, BOB, job="202") == []
    of_another = machines.ask(BOB, "GET", "/v1/step?name=202.0")
    of_none = machines.ask(BOB, "GET", "/v1/step?name=999.0")
    assert of_another["error"].replace("202", "999") == of_none["error"] and of_another["status"] == of_none["status"]
    row = steps(machines, STAFF, job="202")[0]
    for file in ("gpu.parquet", "meta.json", "absent"):
        target = f"/v1/stepfile?name=202.0&file={file}&id={row['id']}"
        assert machines.ask(BOB, "GET", target)["status"] == 400
    assert {one["uid"] for one in steps(machines, STAFF)} >= {ALICE}
    root = machines.state / "steps"
    for path in [root, *root.rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path


@pytest.mark.parametrize("file", ["../../../central.sqlite", "facts.json", "..%2f..%2findex.sqlite", "gpu.parquet%00"])
def test_no_other_file_is_read(machines: Cluster, file: str) -> None:
    start = time.time() - 60
    sent(machines, "node1", whole("node1", start, 3, "00000000000003a1", job=203, uid=ALICE))
    wait_until(lambda: of_state(machines, 203, "whole"), limit_s=60, what="the tables of the step")
    said = machines.ask(ALICE, "GET", f"/v1/stepfile?name=203.0&file={file}")
    assert said["status"] == 400 and "there is no file" in said["error"]
    for name in ("../203.0", "203.0/../../x", "203.0' or 1=1 --"):
        quoted = name.replace("/", "%2f").replace(" ", "%20").replace("'", "%27")
        assert machines.ask(ALICE, "GET", f"/v1/step?name={quoted}")["status"] == 400


def test_who_may_send_is_the_forwarder_of_the_node(machines: Cluster) -> None:
    events = whole("node1", time.time() - 60, 2, EPOCH, job=204, uid=ALICE)
    assert sent(machines, "node1", events, uid=ALICE)["status"] == 403  # a user
    assert sent(machines, "node1", events, munge=machines.socket_of("node2"))["status"] == 403  # another node
    assert sent(machines, "node2", events)["status"] == 400  # another node's records
    assert sent(machines, "node1", events, name="other")["status"] == 403
    body = batch.pack([encode(one) for one in events])
    changed = batch.pack([encode(one) for one in events[:2]])
    answers = raw(machines, "node1", changed, target=TARGET, signed=base64.b64encode(body).decode())
    assert answers[0]["status"] == 401  # another body than was signed
    assert steps(machines, STAFF, job="204") == []


def test_a_replay_brings_nothing(machines: Cluster) -> None:
    events = whole("node1", time.time() - 60, 2, "00000000000005a1", job=205, uid=ALICE)
    answers = raw(machines, "node1", batch.pack([encode(one) for one in events]), target=TARGET, times=2)
    assert [one["status"] for one in answers] == [200, 401]


def test_what_unpacks_to_a_thousand_times_its_size_is_refused(machines: Cluster) -> None:
    machine = zlib.compressobj(9, wbits=31)
    bomb = b"".join(machine.compress(bytes(1 << 20)) for _ in range(128)) + machine.flush()
    assert len(bomb) < 200 << 10
    before = memory(machines)
    (answer,) = raw(machines, "node1", bomb, target=TARGET)
    assert answer["status"] == 400 and "unpacks to more" in answer["error"]
    assert memory(machines) < before + (64 << 10)
    for body in (b"", gzip.compress(b"{}\n"), b"\x1f\x8b", gzip.compress(b"x" * 100)):
        assert raw(machines, "node1", body, target=TARGET)[0]["status"] in (200, 400)
    (answer,) = raw(machines, "node1", bytes(9 << 20), target=TARGET)
    assert answer["status"] in (0, 413)


def memory(machines: Cluster) -> int:
    """Return the most KiB that the service ever had."""
    assert machines.process is not None
    text = Path(f"/proc/{machines.process.pid}/status").read_text()
    return int(text.partition("VmHWM:")[2].split()[0])


def test_a_hole_is_not_taken(machines: Cluster) -> None:
    events = whole("node1", time.time() - 60, 3, "00000000000007a1", job=207, uid=ALICE)
    assert sent(machines, "node1", events[2:])["status"] == 409
    assert sent(machines, "node1", events[2:], gone="00000000000007a1:2")["have"] == {"00000000000007a1": 5}


def test_a_step_of_another_uid_is_another_step(machines: Cluster) -> None:
    """A node that says of a job that it is another user's gives that user nothing of the first one's."""
    start = time.time() - 60
    sent(machines, "node1", whole("node1", start, 2, "00000000000008a1", job=208, uid=ALICE))
    sent(machines, "node2", whole("node2", start, 2, "00000000000008a2", job=208, uid=BOB))
    wait_until(lambda: of_state(machines, 208, "whole"), limit_s=60, what="the tables of both")
    for uid, node in ((ALICE, "node1"), (BOB, "node2")):
        table = pq.read_table(io.BytesIO(fetched(machines, uid, "208.0", "host.parquet")))
        assert set(table["node"].to_pylist()) == {node}


def test_names_of_jobs_are_no_paths(machines: Cluster) -> None:
    event = frame("node1", 1, time.time() - 60, 1, "00000000000009a1", job=None, sluid="../../../etc")
    assert sent(machines, "node1", [event])["have"] == {"00000000000009a1": 1}  # its number is passed over
    assert not any(".." in one["name"] for one in steps(machines, STAFF))


def test_a_forwarder_takes_a_journal_along(machines: Cluster) -> None:
    """It says what was taken in a file, which the journal's writer reads."""
    journal = machines.journal("node2", ALICE)
    events = whole("node2", time.time() - 60, 5, UNNUMBERED[0], job=210, uid=ALICE)
    journal.append([encode(dataclasses.replace(one, seq=UNNUMBERED[1])) for one in events])
    machines.forward("node2")
    said = machines.top / "forward-node2" / "observed.json"
    wait_until(lambda: said.exists() and json.loads(said.read_text()) == {journal.epoch: 7}, what="delivery")
    wait_until(lambda: of_state(machines, 210, "whole"), limit_s=60, what="the tables of the step")
    table = pq.read_table(io.BytesIO(fetched(machines, ALICE, "210.0", "host.parquet")))
    assert table["cpu"].to_pylist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    quality = pq.read_table(io.BytesIO(fetched(machines, ALICE, "210.0", "quality.parquet")))
    assert set(quality["source"].to_pylist()) == {"pm_counters"}  # none was damaged, and none is missing


MARK = """
import json, sys
from piolet.base.errors import PioletError
from piolet.observe import marks
from piolet.transport.asking import Asker, Peer
url, socket, central, job, start = sys.argv[1:]
said = [marks.Said("loss", 2.0 if at < 20 else 9.0, float(start) + at, marks.OUTPUT) for at in range(40)]
try:
    asker = Asker(Peer(url, int(central), socket))
    print(json.dumps(asker.ask("POST", f"/v1/marks?job={job}", marks.packed(said)[0]).said))
except PioletError as error:
    print(json.dumps({"error": error.message, "status": getattr(error, "status", 0)}))
"""


def test_marks_and_events_are_with_a_step_s_data(machines: Cluster) -> None:
    """Marks that its user sent, and what happened on its nodes; nobody sends another's, nor a certificate."""
    start = time.time() - 60
    xid = Event(CLUSTER, "node1", "00000000000021e1", 1, start + 30, "gpu.xid", "kernel", severity="fatal",
                body={"xid": 79, "text": "NVRM: Xid 79"})  # fmt: skip
    other = dataclasses.replace(xid, kind="kernel.oom", seq=2, job=9, uid=BOB, body={"scope": "cgroup"})
    assert send(machines, "node1", [xid, other]).get("have")
    frames = whole("node1", start, 6, "00000000000021a1", job=221, uid=ALICE)
    sent(machines, "node1", frames[:-1])
    arguments = (machines.url, machines.sockets[0], str(CENTRAL), "221", str(start))
    assert "no data of job 221" in machines.as_user(BOB, MARK, *arguments)["error"]
    assert machines.as_user(ALICE, MARK, *arguments)["steps"] == ["221.0"], machines.log()
    assert machines.ask(ALICE, "GET", "/v1/stepnow?job=221")["nodes"]["node1"]["host"]["rows"]
    assert machines.ask(BOB, "GET", "/v1/stepnow?job=221")["nodes"] == {}
    sent(machines, "node1", frames[-1:])
    wait_until(lambda: of_state(machines, 221, "whole"), limit_s=60, what="the tables of the step")
    events = pq.read_table(io.BytesIO(fetched(machines, ALICE, "221.0", "events.parquet"))).to_pylist()
    assert [(row["kind"], row["source"], row["text"]) for row in events] == [("gpu.xid", "kernel", "NVRM: Xid 79")]
    marks = pq.read_table(io.BytesIO(fetched(machines, ALICE, "221.0", "marks.parquet")))
    assert len(marks) == 40 and set(marks["origin"].to_pylist()) == {"output"}
    judged = pq.read_table(io.BytesIO(fetched(machines, ALICE, "221.0", "judged.parquet"))).to_pylist()
    assert {row["detector"]: row["state"] for row in judged}["loss_spike"] == "found"


SLOW = """
import socket, sys, time
from piolet.system import munge
from piolet.transport.statements import SCHEME, Statement, digest
port, central, place = sys.argv[1:]
held = []
for _ in range(10):
    statement = Statement("POST", "/v1/marks?job=1", "", "", digest(b""), "", time.time())
    credential = munge.encode(statement.payload(), for_uid=int(central), socket=place)
    held.append(socket.create_connection(("127.0.0.1", int(port)), 30))
    head = f"POST /v1/marks?job=1 HTTP/1.1\\r\\nHost: x\\r\\nAuthorization: {SCHEME} {credential}\\r\\n"
    held[-1].sendall(f"{head}Content-Length: 100\\r\\n\\r\\nx".encode())
print("held", flush=True)
sys.stdin.read()
"""


def test_users_that_send_slowly_hold_up_no_node(machines: Cluster) -> None:
    """More of them than there are places for what nodes send."""
    command = [sys.executable, "-c", SLOW, str(machines.port), str(CENTRAL), machines.sockets[0]]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, user=ALICE, group=ALICE, extra_groups=(), cwd="/"
    ) as slow:
        assert slow.stdout is not None and slow.stdout.readline() == b"held\n"
        begun = time.monotonic()
        events = whole("node1", time.time() - 60, 2, "00000000000022a1", job=222, uid=ALICE)
        assert sent(machines, "node1", events).get("have")
        assert time.monotonic() - begun < 20  # what is not sent to its end is given up after 30 s
        slow.kill()
