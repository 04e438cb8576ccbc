"""A central service and forwarders as real processes, of accounts by number, with munged's of their own; as root."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from piolet.events.envelope import UNNUMBERED, Event, encode
from piolet.events.stream import Stream, Writer

from tests.support.munge import munged
from tests.support.waiting import wait_until
from tools.cluster import network

CENTRAL, FORWARD, NODES_OWN, ALICE, STAFF = 61301, 61302, 61303, 61304, 0
CLUSTER = "alps"
EPOCH = "00000000000000a1"
BOOT = "0b1c2d3e-0000-4000-8000-000000000000"
BIN = Path(sys.executable).parent
HERE = "127.0.0.9"  # where the service's munged is


def free_port() -> int:
    """Return a port that was free a moment ago."""
    rng = random.Random()
    return next(port for port in rng.sample(network.PORTS, 100) if network.is_free(port))


def event(node: str, seq: int, kind: str = "node.heartbeat", source: str = "root", **fields: Any) -> Event:
    """Return a record."""
    fields = {"epoch": EPOCH, "time": time.time(), **fields}
    return Event(CLUSTER, node, seq=seq, kind=kind, source=source, **fields)


def line(node: str, kind: str = "node.heartbeat", source: str = "root", **fields: Any) -> bytes:
    """Return a record that a spool is to number."""
    return encode(event(node, UNNUMBERED[1], kind, source, epoch=UNNUMBERED[0], **fields))


class Cluster:
    """Machines of one cluster on this one: node N is at 127.0.0.(9+N), with a munged there."""

    def __init__(self, top: Path, sockets: Sequence[str], store: str = "") -> None:
        self.top, self.sockets = top, sockets
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.state = top / "central"
        self.state.mkdir()
        os.chown(self.state, CENTRAL, CENTRAL)
        self.store = store or f"sqlite:///{self.state}/central.sqlite"
        self.nodes = {f"node{number}": f"127.0.0.{9 + number}" for number in range(1, len(sockets))}
        addresses = top / "addresses"
        addresses.write_text("".join(f"{node} {address}\n" for node, address in self.nodes.items()))
        self.more: dict[str, str] = {}
        self.keep = ""  # what its section [keep] has besides
        self.process: subprocess.Popen[bytes] | None = None
        self.running: list[subprocess.Popen[bytes]] = []

    def socket_of(self, node: str) -> str:
        """Return the socket of a node's munged."""
        return self.sockets[int(node.removeprefix("node"))]

    def config(self, munge: str, name: str, forward: str = "") -> Path:
        """Write a configuration; return its path. `forward` is what its section [forward] has besides."""
        more = "".join(f"{key} = {value}\n" for key, value in self.more.items())
        path = self.top / f"{name}.toml"
        path.write_text(
            f'[central]\nurl = "{self.url}"\nlisten = "127.0.0.1:{self.port}"\nsocket = "{self.state}/central.sock"\n'
            f'account = "{CENTRAL}"\ncluster = "{CLUSTER}"\nstore = "{self.store}"\nmunge_socket = "{munge}"\n'
            f'addresses = "{self.top}/addresses"\naccounting_s = 0\n{more}'
            f'[keep]\ndirectory = "{self.state}/steps"\nfree_mib = 1\nsettle_s = 1\n{self.keep}'
            f'[node]\naccount = "{NODES_OWN}"\n'
            f'[forward]\naccount = "{FORWARD}"\nevery_s = 1\nbeats_s = 1\n{forward}'
        )
        path.chmod(0o644)
        return path

    def start(self, *, uid: int = CENTRAL, wait: bool = True, program: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        """Start the service."""
        config = self.config(self.sockets[0], "central")
        command = [*(program or [str(BIN / "piolet-central")]), "--config", str(config)]
        self.process = self._start(command, uid, "central.log")
        if wait:
            wait_until(self._listens, limit_s=60, what="piolet-central")
        return self.process

    def spool(self, node: str) -> Stream:
        """Return a new stream of a node's spool, to append to."""
        place = self.top / f"spool-{node}"
        place.mkdir(exist_ok=True)
        os.chown(place, 0, FORWARD)
        place.chmod(0o2750)  # as pioletd makes it: the forwarder reads by its group
        return Stream(str(place), None, Writer(CLUSTER, node, BOOT))

    def journal(self, node: str, uid: int) -> Stream:
        """Return a new stream of a node's journal of steps, to append to, and make its spool of events as well."""
        self.spool(node)
        place = self.top / f"journal-{node}"
        place.mkdir(exist_ok=True)
        os.chown(place, 0, FORWARD)
        place.chmod(0o2750)
        return Stream(str(place), uid, Writer(CLUSTER, node, BOOT))

    def forward(self, node: str, program: Sequence[str] = (), more: str = "") -> subprocess.Popen[bytes]:
        """Start a node's forwarder."""
        state = self.top / f"forward-{node}"
        if not state.exists():
            state.mkdir()
            os.chown(state, FORWARD, FORWARD)
        spool = self.top / f"spool-{node}"
        journal = self.top / f"journal-{node}"
        own = f'{more}frames_s = 1\nstate = "{state}"\n[events]\nspool = "{spool}"\n'
        own += f'[observe]\njournal = "{journal}"\nsteps = "{"on" if journal.exists() else "off"}"\n'
        config = self.config(self.socket_of(node), node, own)
        command = [*(program or [str(BIN / "piolet-forward")]), "--config", str(config)]
        return self._start(command, FORWARD, f"{node}.log")

    def _start(self, command: Sequence[str], uid: int, log: str) -> subprocess.Popen[bytes]:
        with (self.top / log).open("ab") as out:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, user=uid, group=uid, extra_groups=()
            )
        self.running.append(process)
        return process

    def run(self, command: Sequence[str], uid: int, log: str) -> None:
        """Have a program run as a user until the cluster ends."""
        self._start(command, uid, log)
        wait_until(self._any_listens, what=command[0])

    def _any_listens(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def ask(self, uid: int, method: str, target: str, **said: str) -> dict[str, Any]:
        """Ask the service as a user does; return the answer, or {'error', 'status'}."""
        body = json.dumps(said) if said else ""
        return self.as_user(uid, ASK, self.url, self.sockets[0], str(CENTRAL), method, target, body)

    def _listens(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log()
        return self._any_listens()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End the service, and return its exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(30)

    def log(self, name: str = "central.log") -> str:
        """Return what a process wrote."""
        return (self.top / name).read_text("utf-8", "replace")

    def end(self) -> None:
        """End everything."""
        for process in self.running:
            if process.poll() is None:
                process.kill()
            process.wait()

    def as_user(self, uid: int, script: str, *arguments: str, told: str = "") -> dict[str, Any]:
        """Run lines of Python as a user, who prints one object of JSON; return it."""
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments], capture_output=True, user=uid, group=uid, extra_groups=(),
            text=True, timeout=60, cwd="/", input=told,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        said: dict[str, Any] = json.loads(done.stdout)
        return said


ASK = """
import json, sys
from piolet.base.errors import PioletError
from piolet.transport.asking import Asker, Peer
url, socket, central, method, target, body = sys.argv[1:]
try:
    print(json.dumps(Asker(Peer(url, int(central), socket)).ask(method, target, body.encode()).said))
except PioletError as error:
    print(json.dumps({"error": error.message, "status": getattr(error, "status", 0)}))
"""

SEND = """
import json, sys
from piolet.base.errors import PioletError
from piolet.events import batch
from piolet.transport.asking import Asker, Peer
url, socket, central, cluster, node, target, *lines = sys.argv[1:]
body = batch.pack([line.encode() + b"\\n" for line in lines]) if lines else b""
try:
    answer = Asker(Peer(url, int(central), socket)).ask("POST", target, body, cluster=cluster, node=node)
    print(json.dumps(answer.said))
except PioletError as error:
    print(json.dumps({"error": error.message, "status": getattr(error, "status", 0), **getattr(error, "said", {})}))
"""


def send(
    cluster: Cluster, node: str, events: Sequence[Event], *, uid: int = FORWARD, munge: str = "", gone: str = "",
    name: str = CLUSTER, target: str = "/v1/events",
) -> dict[str, Any]:  # fmt: skip
    """Send a batch as a node's forwarder does; return the answer, or {'error', 'status'}."""
    lines = [encode(one).decode().strip() for one in events]
    socket_ = munge or cluster.socket_of(node)
    target += f"?gone={gone}" if gone else ""
    return cluster.as_user(uid, SEND, cluster.url, socket_, str(CENTRAL), name, node, target, *lines)


@contextlib.contextmanager
def cluster(nodes: int = 2, store: str = "") -> Iterator[Cluster]:
    """Yield a cluster of so many nodes, whose service is not started."""
    # pytest closes its own directories to other accounts again whenever another run of it begins.
    with tempfile.TemporaryDirectory(prefix="piolet-central-") as name:
        Path(name).chmod(0o755)
        with munged(HERE, *(f"127.0.0.{9 + number}" for number in range(1, nodes + 1))) as sockets:
            made = Cluster(Path(name), sockets, store)
            try:
                yield made
            finally:
                made.end()


RAW = """
import base64, http.client, json, sys, time
from piolet.system import munge
from piolet.transport.statements import Statement, digest
wish = json.load(sys.stdin)
body = base64.b64decode(wish["body"])
signed = base64.b64decode(wish["signed"]) if "signed" in wish else body
statement = Statement("POST", wish.get("stated", wish["target"]), wish["cluster"], wish["node"], digest(signed),
                      wish.get("nonce", ""), time.time() + wish.get("ahead", 0))
payload = wish["payload"].encode() if "payload" in wish else statement.payload()
credential = munge.encode(payload, wish["for"], wish.get("ttl", 0), wish["socket"])
time.sleep(wish.get("wait", 0))
found = []
for _ in range(wish.get("times", 1)):
    connection = http.client.HTTPConnection("127.0.0.1", wish["port"], timeout=60)
    try:
        connection.request("POST", wish["target"], body, {"Authorization": "MUNGE " + credential})
        answer = connection.getresponse()
        found.append({"status": answer.status, "signed": answer.getheader("Piolet-Credential") is not None,
                      **json.loads(answer.read())})
    except (OSError, http.client.HTTPException) as error:
        found.append({"status": 0, "error": repr(error)})
print(json.dumps({"answers": found}))
"""


def raw(cluster: Cluster, node: str, body: bytes, *, uid: int = FORWARD, **wish: Any) -> list[dict[str, Any]]:
    """Send a request as no forwarder does; return the answers, with 'status'. `wish` is what RAW reads."""
    said = {
        "node": node, "cluster": CLUSTER, "target": "/v1/events", "for": CENTRAL, "port": cluster.port,
        "socket": cluster.socket_of(node), "body": base64.b64encode(body).decode(), **wish,
    }  # fmt: skip
    answers: list[dict[str, Any]] = cluster.as_user(uid, RAW, told=json.dumps(said))["answers"]
    return answers
