"""An incident that is played: what is put into the figures comes out of all that lies between."""

from __future__ import annotations

from pathlib import Path

import pytest
from piolet.observe import reading

from tests.support import played
from tools import incident


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The step's data, as a store made them of its nodes' journals."""
    return played.play(tmp_path_factory.mktemp("demo"))


def test_screen_and_page_name_both_faults(directory: Path) -> None:
    """The straggler with its node, the file system with its mount; and they say why a node was silent."""
    screen, page = played.told(directory)
    for text in played.NAMED:
        assert text in screen and text in page.decode(), text
    found = {row["detector"]: row for row in reading.open_step(directory).table("findings").to_pylist()}
    assert set(found) == {"straggler", "throttling", "slow_file_system"}
    assert (found["straggler"]["node"], found["slow_file_system"]["subject"]) == (incident.SICK, "/scratch")
    assert "samples, node2: the sampler was restarted" in page.decode()


def test_tables_are_what_nodes_saw(directory: Path, tmp_path: Path) -> None:
    """No sample is lost or doubled between a journal and its table."""
    made, stored = reading.open_step(incident.write(tmp_path)), reading.open_step(directory)
    for table in ("gpu", "host", "io", "net"):
        names = ["node", "time", *(["gpu"] if table == "gpu" else [])]
        keys = [sorted(zip(*step.table(table, names).to_pydict().values(), strict=True)) for step in (made, stored)]
        assert keys[0] == keys[1] and len(set(keys[0])) == len(keys[0])
    assert stored.table("gpu")["power"].to_numpy().sum() == pytest.approx(made.table("gpu")["power"].to_numpy().sum())
