"""This forwarder and a service of the release before, recorded with the code of that commit."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path
from typing import Any

from piolet.events.reader import Reader
from piolet.forward.forwarder import Forwarder
from piolet.transport import statements
from piolet.transport.asking import Answer
from piolet.transport.statements import Statement

RECORDED = Path(__file__).parents[2] / "central" / "recorded" / "wire-4af2e6b.json"


class Service:
    """Answers as the recorded one did, and keeps what it was asked."""

    def __init__(self, said: dict[str, Any]) -> None:
        self._have = json.loads(base64.b64decode(said["answer"]["body"]))["have"]
        self.asked: list[dict[str, Any]] = []

    def ask(
        self, method: str, target: str, body: bytes = b"", *, cluster: str = "", node: str = "", kind: str = ""
    ) -> Answer:
        statement = Statement(method, target, cluster, node, statements.digest(body), "", 1.79e9).payload().decode()
        self.asked.append({
            "method": method, "target": target, "body": body, "cluster": cluster, "node": node, "kind": kind,
            "statement": statement.split("\n"),
        })  # fmt: skip
        return Answer({"have": self._have if body else {}}, 0.0)


def test_it_asks_what_the_forwarder_of_the_release_before_asked(tmp_path: Path) -> None:
    said = json.loads(RECORDED.read_text())
    spool, state = tmp_path / "spool", tmp_path / "state"
    for place in (spool, state):
        place.mkdir()
    for name, text in said["spool"].items():
        (spool / name).write_text(text)
    service = Service(said)
    Forwarder(Reader(str(spool)), service, str(state), 5.0).turn()
    for one, before in zip(service.asked, said["asked"], strict=True):
        # The service looks at what a body unpacks to, and that its digest was signed.
        body, theirs = one.pop("body"), base64.b64decode(before.pop("body"))
        assert (gzip.decompress(body) if body else b"") == (gzip.decompress(theirs) if theirs else b"")
        before["statement"] = before["statement"].split("\n")
        before["statement"][5] = statements.digest(body)
        assert one == before
    assert (state / "acknowledged.json").read_text() == said["acknowledged"]


def test_it_believes_the_answers_of_that_service() -> None:
    said = json.loads(RECORDED.read_text())["answer"]
    text = base64.b64decode(said["body"])
    assert statements.answer("MUNGE:credential:", 200, text).decode() == said["covers"]
