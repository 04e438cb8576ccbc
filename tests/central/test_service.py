"""Batches go in once, and only those that are believed."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.support.central import EPOCH, Cluster, cluster, event, send

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="accounts by number need root")


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of two nodes, whose service runs."""
    with cluster(tmp_path_factory.mktemp("central")) as made:
        made.start()
        yield made


def test_what_is_sent_is_here_once(machines: Cluster) -> None:
    records = [event("node1", seq) for seq in range(1, 6)]
    assert send(machines, "node1", records)["have"] == {EPOCH: 5}
    assert send(machines, "node1", records)["have"] == {EPOCH: 5}
    assert send(machines, "node1", [event("node1", seq) for seq in range(4, 9)])["have"] == {EPOCH: 8}
    assert send(machines, "node1", [])["have"] == {EPOCH: 8}
