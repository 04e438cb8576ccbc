"""A data set of --score is data of a step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from piolet.base.errors import ScoreError
from piolet.observe import finding, layout, reading
from piolet.observe.grid import Grid

from tests.score.generate import generate


def test_a_data_set_is_data_of_a_step(tmp_path: Path) -> None:
    generate(tmp_path / "data", 2, 2, 120, 1.0)
    step = reading.from_score(tmp_path / "data")
    gpu, host = step.table("gpu"), step.table("host")
    assert (gpu.schema, host.schema) == (layout.schema("gpu"), layout.schema("host"))
    assert len(gpu) == 2 * 2 * 120
    assert sorted(set(gpu["node"].to_pylist())) == list(step.nodes)
    assert step.end - step.start == pytest.approx(120e9, rel=0.1)
    assert step.meta["version"] == layout.VERSION
    means = gpu.group_by(["node", "gpu"]).aggregate([("sm", "mean")])
    assert len(means) == 4
    assert np.all(np.array(means["sm_mean"]) >= 0)
    assert step.table("events").num_rows == 0
    assert step.quality.schema == layout.schema("quality")


def test_a_journal_says_what_is_missing(simulate, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    data = simulate("gpu\nload matmul 3\nload copy 2\ngpu\nload small 100\n", 12, 1.0)
    step = reading.from_score(data.directory)
    assert len(step.table("gpu", ["sm"])) > 0
    reasons = step.quality.to_pylist()
    assert all(row["reason"] and row["source"] for row in reasons)
    with pytest.raises(ScoreError, match="there is no directory"):
        reading.from_score(tmp_path / "absent")


@pytest.mark.parametrize("script", ["gpu\nload matmul 60 75 2\n" * 4, "gpu\nload matmul 100\n" + "gpu\n" * 3])
def test_what_is_sampled_once_a_second_is_enough_for_detectors(simulate, script: str) -> None:  # type: ignore[no-untyped-def]
    """Samples are 0.1 s apart; nothing is wrong with these."""
    grid = Grid(reading.from_score(simulate(script, 30, 0.1).directory))
    assert (grid.width, grid.bins) == (1.0, 30)
    said = {name: finding.judged(finding.load(name), grid).state for name in finding.OWN}
    assert set(said.values()) == {finding.NOTHING, finding.UNKNOWN}, said
    assert said["throttling"] == said["silent_counters"] == said["idle_tail"] == finding.NOTHING
