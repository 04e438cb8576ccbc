"""`piolet doctor`: the central service's account, and whether it answers."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from piolet.central.settings import CentralConfig
from piolet.doctor import BAD, OK, WARN, Machine
from piolet.doctor.central import central, delivered, hidden
from piolet.events.envelope import UNNUMBERED, Event, encode
from piolet.events.settings import EventsConfig
from piolet.events.stream import Stream, Writer
from piolet.forward import acknowledged
from piolet.forward.settings import ForwardConfig
from piolet.images.settings import ImagesConfig
from piolet.node.settings import NodeConfig
from piolet.site.config import Config

from tests.unit.doctor.conftest import program

ANSWER: dict[str, Any] = {"nodes": 3, "judging": True}


def machine(account: str, url: str = "http://127.0.0.1:9", **others: Any) -> Machine:
    config = Config(
        central=CentralConfig(account=account, url=url), forward=ForwardConfig(account="61302"),
        node=NodeConfig(account="61303"), images=ImagesConfig(account="61305"),
    )  # fmt: skip
    return Machine(dataclasses.replace(config, **others))


def states(one: Machine) -> list[tuple[str, str]]:
    return [(finding.state, finding.text) for finding in central(one)]


def test_a_site_without_one() -> None:
    assert states(machine("61301", url="")) == []


@pytest.mark.parametrize(
    ("account", "says"), [("0", "root"), ("61303", "[node]"), ("61302", "[forward]"), ("61305", "[images]")]
)
def test_an_account_that_it_must_not_have(account: str, says: str) -> None:
    """Whoever breaks a node's parser would have the service."""
    state, text = states(machine(account))[0]
    assert state == BAD and says in text


def test_one_that_does_not_answer() -> None:
    (apart, ok), (state, text) = states(machine("61301"))
    assert (apart, state) == (OK, BAD) and "does not answer" in text and "of its own" in ok


def test_an_account_that_is_not_there() -> None:
    ((state, text),) = states(machine("nobody-here"))
    assert state == BAD and "no account nobody-here" in text


@pytest.fixture
def socket_of_one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The socket of a service that says ANSWER."""
    import socketserver

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(ANSWER).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

        def address_string(self) -> str:
            return "here"

    path = str(tmp_path_factory.mktemp("c") / "s")

    class Server(socketserver.UnixStreamServer, HTTPServer):
        def server_bind(self) -> None:
            socketserver.UnixStreamServer.server_bind(self)

    with Server(path, Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield path
        server.shutdown()


@pytest.mark.parametrize(
    ("judging", "failing", "state"), [(True, "", OK), (False, "", BAD), (True, "database or disk is full", BAD)]
)
def test_one_that_answers(
    socket_of_one: str, judging: bool, failing: str, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ANSWER, "judging", judging)
    monkeypatch.setitem(ANSWER, "failing", failing)
    config = CentralConfig(account="61301", url="https://x", trust="certificate", socket=socket_of_one, accounting_s=0)
    one = dataclasses.replace(machine("61301", central=config), here=lambda name: name == "piolet-central")
    assert [found for found, _ in states(one)] == [OK, state]


def test_records_that_do_not_come_to_it(tmp_path: Path) -> None:
    """A service that answers has not for that what this node records."""
    config = dataclasses.replace(
        Config(), events=EventsConfig(spool=str(tmp_path)), forward=ForwardConfig(state=str(tmp_path), beats_s=300)
    )
    stream = Stream(str(tmp_path), None, Writer("alps", "node1", "0" * 32))

    def found(now: float) -> list[str]:
        return [one.text for one in delivered(config, now) if one.state == BAD]

    assert found(5000.0) == [], "no record"
    lines = [encode(Event("alps", "node1", *UNNUMBERED, at, "node.heartbeat", "root")) for at in (1000.0, 1060.0)]
    stream.append(lines)
    assert found(1050.0) == []
    never = ["nothing of what this node records has ever come to the central service: it waits here"]
    assert found(1061.0) == never
    acknowledged.store(str(tmp_path), {stream.epoch: 1})
    assert found(1061.0) == [], "heartbeats wait for each other"
    assert found(1480.0) == []
    assert found(1481.0 + 20 * 60) == [
        "what this node has recorded for 27 minutes has not come to the central service: it waits here"
    ]
    acknowledged.store(str(tmp_path), {stream.epoch: 2})
    assert found(90000.0) == []


HIDES = r"case $2 in configuration) printf 'SlurmDBD configuration:\nPrivateData = jobs\n' ;;"


@pytest.mark.parametrize(
    ("script", "says"),
    [
        (f"{HIDES} *) echo None ;; esac", "hides jobs from 61301"),
        (f"{HIDES} *) echo Operator ;; esac", ""),
        ("echo 'no slurmdbd' >&2; exit 1", "accounting is not known"),
    ],
)
def test_what_accounting_keeps_from_the_service(tmp_path: Path, script: str, says: str) -> None:
    program(tmp_path / "sacctmgr", script)
    one = dataclasses.replace(machine("61301"), path=f"{tmp_path}:/usr/bin:/bin")
    found = list(hidden(one))
    assert [finding.state for finding in found] == ([WARN] if says else [])
    assert all(says in finding.text and finding.hint for finding in found)
