"""A cluster of machines for the tests of this directory."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.support.central import Cluster, cluster


@pytest.fixture(scope="package", autouse=True)
def root() -> None:
    """All of these have daemons and users of several accounts."""
    if os.getuid() != 0:
        pytest.skip("accounts by number need root")


@pytest.fixture(scope="module")
def machines() -> Iterator[Cluster]:
    """A cluster of two nodes, whose service runs."""
    with cluster() as made:
        made.start()
        yield made
