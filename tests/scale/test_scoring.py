"""Scored steps at the size of their users: what srun and `piolet score show` read, without Slurm (`make scale`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scale import steps

NODES = 2688


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory for large data sets, which are removed."""
    yield tmp_path_factory.mktemp("steps")


def test_the_end_of_a_day_on_all_nodes(room: Path) -> None:
    """2,688 nodes have each left their summary of a day: 10 s, 200 MB read, and the screen is the whole step's."""
    steps.leave(room / "day", NODES, 86400, 1)
    found = steps.shown(room / "day")
    steps.remove(room / "day")
    assert f"{4 * NODES} GPUs on {NODES} nodes, 24 h 0 min" in found.text, found.text
    assert "100.0 % of the GPUs' time is covered" in found.text
    assert found.cpu < 10
    assert found.read < 200e6
    assert found.memory < 300e6


def test_an_hour_on_all_nodes_is_shown(room: Path) -> None:
    """3 s and 300 MB."""
    steps.leave(room / "hour", NODES, 3600, 1)
    found = steps.shown(room / "hour")
    steps.remove(room / "hour")
    assert f"{4 * NODES} GPUs on {NODES} nodes, 60 min 0 s" in found.text or "1 h 0 min" in found.text, found.text
    assert found.cpu < 3
    assert found.memory < 300e6


def test_what_is_read_grows_as_the_nodes_do(room: Path) -> None:
    """And with nothing else: a day leaves as much as an hour does."""
    read = []
    for name, nodes, seconds in (("few", 64, 3600), ("many", 640, 3600), ("long", 640, 86400)):
        steps.leave(room / name, nodes, seconds, 1)
        read.append(steps.shown(room / name).read)
        steps.remove(room / name)
    assert read[1] < 12 * read[0] and read[2] < 1.3 * read[1], read
