"""A site without MUNGE: nodes show certificates, and users ask on the service's own machine."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from piolet.system import munge
from piolet.transport.statements import Statement, digest

from tests.support.central import ALICE, BIN, CENTRAL, CLUSTER, FORWARD, Cluster, cluster, event, line
from tests.support.waiting import wait_until

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")

SEND = """
import json, sys
from piolet.base.errors import PioletError
from piolet.events import batch
from piolet.transport.asking import Asker, Peer
url, authority, certificate, key, cluster, node, *lines = sys.argv[1:]
body = batch.pack([line.encode() + b"\\n" for line in lines]) if lines else b""
try:
    asker = Asker(Peer(url, 0, "", authority, certificate, key))
    print(json.dumps(asker.ask("POST", "/v1/events", body, cluster=cluster, node=node).said))
except PioletError as error:
    print(json.dumps({"error": error.message, "status": getattr(error, "status", 0)}))
"""


class Authority:
    """Signs certificates."""

    def __init__(self, top: Path, name: str) -> None:
        self.top, self.name = top, name
        self.file = str(top / f"{name}.pem")
        self._run("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}",
                  "-keyout", f"{name}.key", "-out", f"{name}.pem")  # fmt: skip

    def _run(self, *words: str) -> None:
        subprocess.run(["openssl", *words], check=True, capture_output=True, cwd=self.top)

    def sign(self, name: str, alternative: str, owner: int) -> tuple[str, str]:
        """Return the files of a certificate and its key."""
        (self.top / f"{name}.ext").write_text(f"subjectAltName={alternative}\n")
        self._run("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}", "-keyout", f"{name}.key",
                  "-out", f"{name}.csr")  # fmt: skip
        self._run("x509", "-req", "-in", f"{name}.csr", "-CA", self.file, "-CAkey", f"{self.name}.key",
                  "-CAcreateserial", "-days", "2", "-extfile", f"{name}.ext", "-out", f"{name}.pem")  # fmt: skip
        key = self.top / f"{name}.key"
        os.chown(key, owner, owner)
        key.chmod(0o400)
        return str(self.top / f"{name}.pem"), str(key)


class Certified:
    """A cluster by certificates."""

    def __init__(self, machines: Cluster) -> None:
        self.machines = machines
        self.authority = Authority(machines.top, "site")
        certificate, key = self.authority.sign("head", "IP:127.0.0.1", CENTRAL)
        machines.url = f"https://127.0.0.1:{machines.port}"
        machines.more |= {
            "trust": '"certificate"', "certificate": f'"{certificate}"', "key": f'"{key}"',
            "authority": f'"{self.authority.file}"',
        }  # fmt: skip
        self.of = {name: self.authority.sign(name, f"DNS:{name}", FORWARD) for name in ("node1", "node2")}

    def send(self, node: str, files: tuple[str, str], *seqs: int) -> dict[str, Any]:
        from piolet.events.envelope import encode

        lines = [encode(event(node, seq)).decode().strip() for seq in seqs]
        return self.machines.as_user(
            FORWARD, SEND, self.machines.url, self.authority.file, *files, CLUSTER, node, *lines
        )


@pytest.fixture(scope="module")
def certified() -> Iterator[Certified]:
    """One whose service runs."""
    with cluster(2) as machines:
        made = Certified(machines)
        machines.start()
        machines.state.chmod(0o711)
        yield made


def test_a_node_sends_its_own_records(certified: Certified) -> None:
    assert list(certified.send("node1", certified.of["node1"], 1, 2)["have"].values()) == [2]


def test_another_nodes_certificate(certified: Certified) -> None:
    refused = certified.send("node2", certified.of["node1"], 1)
    assert refused["status"] == 403 and "not for node node2" in refused["error"]


def test_a_certificate_of_another_authority(certified: Certified) -> None:
    other = Authority(certified.machines.top, "other")
    refused = certified.send("node1", other.sign("forged", "DNS:node1", FORWARD), 3)
    assert refused["status"] == 0 and "have" not in refused


def test_no_certificate(certified: Certified) -> None:
    """And MUNGE's word counts for nothing there."""
    machines = certified.machines
    statement = Statement("POST", "/v1/events", CLUSTER, "node1", digest(b""), "", time.time())
    munged = munge.encode(statement.payload(), CENTRAL, socket=machines.socket_of("node1"))
    said = {"Piolet-Statement": statement.payload().decode().replace("\n", " | "), "Authorization": f"MUNGE {munged}"}
    context = ssl.create_default_context(cafile=certified.authority.file)

    def sent() -> int:
        connection = http.client.HTTPSConnection("127.0.0.1", machines.port, context=context, timeout=20)
        with contextlib.closing(connection):
            connection.request("POST", "/v1/events", b"", said)
            return connection.getresponse().status

    with pytest.raises((ssl.SSLError, ConnectionError)):
        sent()
    context.load_cert_chain(*certified.of["node1"])
    assert sent() == 200


def test_a_service_of_another_authority(certified: Certified) -> None:
    """The node does not believe whoever has the port."""
    other = Authority(certified.machines.top, "third")
    files = certified.of["node1"]
    said = certified.machines.as_user(
        FORWARD, SEND, certified.machines.url, other.file, *files, CLUSTER, "node1"
    )  # fmt: skip
    assert "certificate verify failed" in said["error"].lower()


def test_the_forwarder(certified: Certified) -> None:
    machines = certified.machines
    stream = machines.spool("node2")
    stream.append([line("node2") for _ in range(3)])
    certificate, key = certified.of["node2"]
    machines.forward("node2", more=f'certificate = "{certificate}"\nkey = "{key}"\n')
    path = machines.top / "forward-node2" / "acknowledged.json"
    wait_until(lambda: path.exists() and f'"{stream.epoch}": 3' in path.read_text(), what="delivery")


def test_users_ask_on_its_machine(certified: Certified) -> None:
    machines = certified.machines
    config = machines.config("", "user")
    done = subprocess.run(
        [str(BIN / "piolet"), "--config", str(config), "central", "status"], capture_output=True, text=True, user=ALICE,
        group=ALICE, extra_groups=(), timeout=60, cwd="/",
    )  # fmt: skip
    assert done.returncode == 0 and "records of" in done.stdout, done.stderr


def test_a_key_that_the_forwarder_may_not_read(certified: Certified) -> None:
    """It is not the service that does not answer."""
    certificate, key = certified.authority.sign("node3", "DNS:node3", ALICE)
    said = certified.send("node3", (certificate, key), 1)
    assert said["error"] == f"{key} cannot be read, which TLS needs: Permission denied"
    said = certified.send("node1", (certified.of["node1"][0], certified.of["node2"][1]), 1)
    assert said["error"].startswith(f"{certified.of['node1'][0]} cannot be used for TLS: ")


def test_users_ask_elsewhere(certified: Certified) -> None:
    machines = certified.machines
    config = machines.config("", "elsewhere")
    config.write_text(config.read_text().replace("central.sock", "no.sock"))
    done = subprocess.run(
        [str(BIN / "piolet"), "--config", str(config), "central", "status"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1 and "hint: it is asked by this socket on its own machine alone" in done.stderr
