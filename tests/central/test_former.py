"""Nodes of the release before send to this service, by what they said: recorded with the code of that commit."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path

from piolet.central.store.database import connect
from piolet.central.store.reader import Reader
from piolet.events.envelope import encode

from tests.support.central import CLUSTER, Cluster, raw

RECORDED = Path(__file__).parent / "recorded" / "wire-4af2e6b.json"


def test_what_a_node_of_the_release_before_sends_is_here_whole(machines: Cluster) -> None:
    said = json.loads(RECORDED.read_text())
    answers = []
    for one in said["asked"]:
        payload = "\n".join([*one["statement"].split("\n")[:-1], f"{time.time():.3f}"])
        body = base64.b64decode(one["body"])
        answers += raw(machines, one["node"], body, target=one["target"], payload=payload)
    assert [answer["status"] for answer in answers] == [200, 200] and all(answer["signed"] for answer in answers)
    lines = "".join(said["spool"].values()).splitlines()
    epoch = json.loads(lines[0])["epoch"]
    assert answers[1]["have"] == {epoch: len(lines)}
    reader = Reader(connect(machines.store), CLUSTER)
    here = [encode(one.event).decode().strip() for one in reader.arrivals() if one.event.epoch == epoch]
    assert here == lines
    assert not [one for one in reader.gaps("node1") if one["epoch"] == epoch]
