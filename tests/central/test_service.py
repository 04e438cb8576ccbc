"""Batches go in once, whole or not at all, and what is missing is said."""

from __future__ import annotations

import gzip
import time

import pytest
from piolet.central.store.database import connect
from piolet.central.store.reader import Reader
from piolet.events.envelope import encode

from tests.support.central import EPOCH, Cluster, event, raw, send

OTHER = "00000000000000b2"


def test_what_is_sent_is_here_once(machines: Cluster) -> None:
    records = [event("node1", seq) for seq in range(1, 6)]
    assert send(machines, "node1", records)["have"] == {EPOCH: 5}
    assert send(machines, "node1", records)["have"] == {EPOCH: 5}
    assert send(machines, "node1", [event("node1", seq) for seq in range(4, 9)])["have"] == {EPOCH: 8}
    assert send(machines, "node1", [])["have"] == {EPOCH: 8}


def test_streams_are_apart(machines: Cluster) -> None:
    records = [event("node2", 1), event("node2", 1, epoch=OTHER), event("node2", 2)]
    assert send(machines, "node2", records)["have"] == {EPOCH: 2, OTHER: 1}


def test_what_does_not_follow_is_not_taken_but_where_its_node_says_that_it_is_gone(machines: Cluster) -> None:
    epoch = "00000000000000c3"
    refused = send(machines, "node1", [event("node1", 5, epoch=epoch)])
    assert refused["status"] == 409 and refused["have"] == {epoch: 0}
    assert send(machines, "node1", [event("node1", 5, epoch=epoch)], gone=f"{epoch}:4")["have"] == {epoch: 5}
    assert send(machines, "node1", [], gone=f"{epoch}:9")["have"] == {epoch: 9}


def test_a_line_that_is_no_record_spoils_the_batch(machines: Cluster) -> None:
    epoch = "00000000000000d4"
    body = gzip.compress(encode(event("node1", 1, epoch=epoch)) + b"{}\n")
    (answer,) = raw(machines, "node1", body)
    assert answer["status"] == 400 and "line 2" in answer["error"] and answer["signed"]
    assert epoch not in send(machines, "node1", [])["have"]


def test_a_kind_that_nobody_knows_is_kept(machines: Cluster) -> None:
    epoch = "00000000000000e5"
    records = [event("node1", 1, kind="gpu.telepathy", source="kernel", epoch=epoch)]
    assert send(machines, "node1", records)["have"] == {epoch: 1}


def test_a_field_of_a_later_release_is_kept(machines: Cluster) -> None:
    epoch = "00000000000000e6"
    line = encode(event("node1", 1, epoch=epoch)).replace(b"}\n", b',"rack":{"row":7}}\n')
    (answer,) = raw(machines, "node1", gzip.compress(line))
    assert answer["status"] == 200 and answer["have"] == {epoch: 1}
    said = machines.ask(0, "GET", "/v1/node?name=node1")
    assert [one["more"] for one in said["records"] if one["epoch"] == epoch] == [{"rack": {"row": 7}}]


def test_a_version_of_a_later_release_is_refused_and_stays_on_its_node(machines: Cluster) -> None:
    epoch = "00000000000000e7"
    line = encode(event("node1", 1, epoch=epoch)).replace(b'"version":1', b'"version":2')
    (answer,) = raw(machines, "node1", gzip.compress(line))
    assert answer["status"] == 400 and "version 2" in answer["error"] and "upgraded before" in answer["hint"]
    assert epoch not in send(machines, "node1", [])["have"]


def test_a_clock_that_is_off_is_asked_again_with_a_number(machines: Cluster) -> None:
    """MUNGE notices no replay of a credential that is outside its life: the service's own number does."""
    body = b""
    (late,) = raw(machines, "node1", body, ttl=1, wait=2.2)
    assert late["status"] == 401 and late["signed"] and "away from this clock" in late["error"]
    first, second = raw(machines, "node1", body, ttl=1, wait=2.2, nonce=late["nonce"], times=2)
    assert first["status"] == 200
    assert second["status"] == 401 and "nonce" in second
    (forged,) = raw(machines, "node1", body, ttl=1, wait=2.2, nonce=late["nonce"][:-1] + "x")
    assert forged["status"] in (400, 401)


@pytest.mark.parametrize("ahead", [3600.0, -3600.0])
def test_a_clock_that_is_an_hour_off_is_no_wrong_window(machines: Cluster, ahead: float) -> None:
    """What happened now is judged as of now, whatever its node's clock says; the record stays as it was written."""
    epoch = f"{int(2**62 + ahead):016x}"
    now = time.time()
    (answer,) = raw(
        machines, "node1", gzip.compress(encode(event("node1", 1, epoch=epoch, time=now + ahead))), ahead=ahead
    )
    assert answer["have"] == {epoch: 1}
    engine = connect(machines.store)
    (found,) = (one for one in Reader(engine, "alps").arrivals() if one.event.epoch == epoch)
    engine.dispose()
    assert abs(found.at - now) < 30 and found.event.time == now + ahead
    assert found.event.offset is not None and abs(found.event.offset - ahead) < 30
