"""What users, and other nodes than it says, try to make the service believe. Each is refused, and nothing is kept."""

from __future__ import annotations

import base64
import gzip
import socket
import subprocess
import time
import zlib
from pathlib import Path

import pytest
from piolet.central.accounted import JOBS
from piolet.central.bounded import OF_ONE_MOST
from piolet.events import batch
from piolet.events.envelope import Event, encode
from piolet.system import munge

from tests.support.central import (
    ALICE,
    BIN,
    EPOCH,
    FORWARD,
    NODES_OWN,
    Cluster,
    cluster,
    event,
    raw,
    send,
)  # fmt: skip


def body_of(*events: Event) -> bytes:
    """Return the body of a batch."""
    return batch.pack([encode(one) for one in events])


def kept(machines: Cluster, node: str = "node1") -> dict[str, int]:
    """Return what the service has of a node."""
    have: dict[str, int] = send(machines, node, [])["have"]
    return have


def test_a_user_sends_records(machines: Cluster) -> None:
    """Alice, on a node of the cluster, with a credential of hers that MUNGE vouches for."""
    refused = send(machines, "node1", [event("node1", 1)], uid=ALICE)
    assert refused["status"] == 403 and f"not from {ALICE}" in refused["error"]
    assert not kept(machines)


def test_root_of_a_node_is_no_forwarder(machines: Cluster) -> None:
    assert send(machines, "node1", [event("node1", 1)], uid=0)["status"] == 403


@pytest.mark.parametrize(("claims", "at"), [("node1", "node2"), ("node2", "node1")])
def test_another_nodes_batch(machines: Cluster, claims: str, at: str) -> None:
    """The right account, on the wrong node."""
    refused = send(machines, claims, [event(claims, 1)], munge=machines.socket_of(at))
    assert refused["status"] == 403 and machines.nodes[at] in refused["error"]
    assert not kept(machines, claims)


def test_a_record_of_another_node_in_ones_own_batch(machines: Cluster) -> None:
    refused = send(machines, "node1", [event("node2", 1)])
    assert refused["status"] == 400 and "of node node2" in refused["error"]
    assert not kept(machines, "node2")


def test_a_node_that_is_none(machines: Cluster) -> None:
    refused = send(machines, "nodex", [event("nodex", 1)], munge=machines.socket_of("node1"))
    assert refused["status"] in (403, 503)


def test_another_cluster(machines: Cluster) -> None:
    assert send(machines, "node1", [], name="andes")["status"] == 403


def test_a_batch_is_replayed(machines: Cluster) -> None:
    first, second = raw(machines, "node1", body_of(event("node1", 1, epoch="00000000000000f6")), times=2)
    assert first["status"] == 200 and second["status"] == 401 and "before" in second["error"]


def test_a_batch_is_changed_on_its_way(machines: Cluster) -> None:
    (answer,) = raw(machines, "node1", body_of(event("node1", 1)), signed=_base64(body_of(event("node1", 2))))
    assert answer["status"] == 401 and "another body" in answer["error"]


def test_a_credential_of_another_request(machines: Cluster) -> None:
    """What was signed to ask for something else sends no records."""
    (answer,) = raw(machines, "node1", b"", stated="/v1/status")
    assert answer["status"] == 401 and "another request" in answer["error"]


def test_a_credential_that_anybody_may_decode(machines: Cluster) -> None:
    """One that was shown to another service of the cluster, which shows it here."""
    (answer,) = raw(machines, "node1", b"", **{"for": munge.UID_ANY})
    assert answer["status"] == 401 and "alone" in answer["error"]


def test_no_credential(machines: Cluster) -> None:
    with socket.create_connection(("127.0.0.1", machines.port), 5) as channel:
        channel.sendall(b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n")
        assert channel.recv(4096).startswith(b"HTTP/1.1 401 ")


def test_ten_kilobytes_that_unpack_to_a_gigabyte(machines: Cluster) -> None:
    """Gzip of gzip would do; here it is zeros, packed until little is left."""
    machine = zlib.compressobj(9, wbits=31)
    piece = bytes(1 << 20)
    bomb = b"".join(machine.compress(piece) for _ in range(1024)) + machine.flush()
    before = _peak(machines)
    (answer,) = raw(machines, "node1", bomb)
    assert answer["status"] == 400 and "unpacks to more" in answer["error"]
    assert _peak(machines) - before < 64 << 10


def test_a_batch_of_many_small_records(machines: Cluster) -> None:
    lines = b"".join(encode(event("node1", seq)) for seq in range(1, 502))
    (answer,) = raw(machines, "node1", gzip.compress(lines))
    assert answer["status"] == 400 and "500" in answer["error"]


@pytest.mark.parametrize(
    ("kind", "source"),
    [("gpu.xid", "user"), ("gpu.xid", "root"), ("step.outcome", "kernel"), ("slurm.node_state", "site"),
     ("site.repair", "site"), ("site.revet", "site"), ("slurm.job_end", "user"), ("later.kind", "site")],
)  # fmt: skip
def test_a_kind_whose_source_cannot_be(machines: Cluster, kind: str, source: str) -> None:
    """It is not kept, that is written down, and what follows is taken."""
    epoch = f"{abs(hash((kind, source))) % 2**40 + 2**60:016x}"
    wrong = event("node2", 2, kind, source, epoch=epoch)
    records = [event("node2", 1, epoch=epoch), wrong, event("node2", 3, epoch=epoch)]
    assert send(machines, "node2", records)["have"] == {epoch: 3}
    said = machines.ask(0, "GET", "/v1/node?name=node2")
    assert [one["seq"] for one in said["records"] if one["epoch"] == epoch] == [3, 1]
    assert [(one["first"], one["last"]) for one in said["gaps"] if one["epoch"] == epoch] == [(2, 2)]


def test_the_services_own_epochs(machines: Cluster) -> None:
    """Records under the keys of what the service itself will write."""
    send(machines, "node1", [event("node1", 1, epoch=JOBS)])
    assert not any(one["epoch"] == JOBS for one in machines.ask(0, "GET", "/v1/node?name=node1").get("records", []))


def test_a_head_that_never_ends(machines: Cluster) -> None:
    """Slow loris: each connection sends a byte now and then. Others are served, and each is ended."""
    begun = time.monotonic()
    slow = [socket.create_connection(("127.0.0.1", machines.port), 30) for _ in range(OF_ONE_MOST - 8)]
    for one in slow:
        one.sendall(b"POST /v1/events HTTP/1.1\r\nX: ")
    assert "have" in send(machines, "node1", [])
    for one in slow:
        while _goes_on(one):
            assert time.monotonic() - begun < 25, "it is still open"
            time.sleep(0.2)
        one.close()


def test_more_connections_than_one_machine_may_have(machines: Cluster) -> None:
    many = [socket.create_connection(("127.0.0.1", machines.port), 30) for _ in range(OF_ONE_MOST + 20)]
    time.sleep(0.5)
    closed = sum(1 for one in many if not _goes_on(one))
    for one in many:
        one.close()
    assert closed >= 20
    _again(machines)


def test_whoever_has_the_port_says_that_it_took_everything() -> None:
    """A user listens at the service's port while that is down. The forwarder does not believe a word."""
    with cluster(1) as machines:
        said = b'{"have":{"%s":1000000}}' % EPOCH.encode()
        code = (
            "import socket,sys\ns=socket.create_server(('127.0.0.1',int(sys.argv[1])))\n"
            f"said={said!r}\n"
            "while True:\n c,_=s.accept(); c.recv(65536)\n"
            " c.sendall(b'HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n'%len(said)+said); c.close()\n"
        )
        machines.run(["/usr/bin/python3", "-c", code, str(machines.port)], ALICE, "impostor.log")
        answer = send(machines, "node1", [event("node1", 1)])
        assert "have" not in answer and "signs nothing" in answer["error"]


@pytest.mark.parametrize(("uid", "says"), [(0, "root"), (NODES_OWN, "the nodes' daemon"), (FORWARD, "forwarder")])
def test_the_service_is_started_as_an_account_that_it_must_not_be(machines: Cluster, uid: int, says: str) -> None:
    config = machines.config(machines.sockets[0], "other")
    done = subprocess.run(
        [str(BIN / "piolet-central"), "--config", str(config)], capture_output=True, text=True, user=uid, group=uid,
        extra_groups=(), timeout=60,
    )  # fmt: skip
    assert done.returncode == 1 and says in done.stderr and "Traceback" not in done.stderr


def _again(machines: Cluster) -> None:
    deadline = time.monotonic() + 20
    while "have" not in send(machines, "node1", []):
        assert time.monotonic() < deadline


def _goes_on(channel: socket.socket) -> bool:
    channel.setblocking(False)
    try:
        return channel.recv(4096) != b""
    except BlockingIOError:
        try:
            channel.send(b"x")
        except OSError:
            return False
        return True
    except OSError:
        return False


def _peak(machines: Cluster) -> int:
    """Return the most memory that the service has had, in KiB."""
    assert machines.process is not None
    status = Path(f"/proc/{machines.process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
