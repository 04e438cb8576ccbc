"""Scored steps at the size of their users: what srun and `piolet score show` read, without Slurm (`make scale`).

`make test` has a tenth of the nodes; the bounds of time are then a tenth and what Python takes to begin.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import time
from collections.abc import Iterator
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from piolet.cli import origin, score, scored
from piolet.samples.dataset import open_dataset
from piolet.samples.request import Wish
from piolet.score.report import content, figures, html
from piolet.score.summary import Summary, summarise
from piolet.site.config import Config

from tests.scale import FULL, steps
from tests.score.generate import generate

ALL = 2688
NODES = ALL if FULL else 268
BEGIN_S = 0.0 if FULL else 2.0


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
    assert found.cpu < 10 * NODES / ALL + BEGIN_S
    assert found.read < 200e6 * NODES / ALL + 10e6 * BEGIN_S
    assert found.memory < 300e6


def test_an_hour_on_all_nodes_is_shown(room: Path) -> None:
    """3 s and 300 MB."""
    steps.leave(room / "hour", NODES, 3600, 1)
    found = min(
        (steps.shown(room / "hour") for _ in range(3 if FULL else 1)), key=lambda one: one.cpu
    )  # others compute, too
    steps.remove(room / "hour")
    assert f"{4 * NODES} GPUs on {NODES} nodes, 60 min 0 s" in found.text or "1 h 0 min" in found.text, found.text
    assert found.cpu < 3 * NODES / ALL + BEGIN_S
    assert found.memory < 300e6


def test_srun_ends_though_its_step_was_large(
    room: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Within 2 s, with the screen or with the command that shows it."""
    steps.leave(room / "set-1000.0", NODES, 3600, 10)
    monkeypatch.setenv(scored.VARIABLE, Wish(out=str(room / "set-%j.%s")).to_json().decode())
    monkeypatch.setattr(origin, "began", lambda _: 0.0)
    scored._BEGUN = before = time.monotonic()
    status = scored.end(1000, 0, Config(), score._screen)
    took = time.monotonic() - before
    steps.remove(room / "set-1000.0")
    said = capfd.readouterr().err
    assert took < 2.5, took
    assert f"{4 * NODES} GPUs on {NODES} nodes" in said if status == 0 else "it comes with: piolet score show" in said


def test_what_is_read_grows_as_the_nodes_do(room: Path) -> None:
    """And with nothing else: a day leaves as much as an hour does."""
    read = []
    for name, nodes, seconds in (("few", NODES // 42, 3600), ("many", NODES // 4, 3600), ("long", NODES // 4, 86400)):
        steps.leave(room / name, nodes, seconds, 1)
        read.append(steps.shown(room / name).read)
        steps.remove(room / name)
    assert read[1] < 12 * read[0] and read[2] < 1.3 * read[1], read


def large(nodes: int, low: list[int], tmp_path: Path) -> Summary:
    """Return the summary of a step of many nodes at 55 %, of which some are at 5 %."""
    generate(tmp_path, 1, 4, 600, 10)
    one = summarise(open_dataset(tmp_path))
    bins = one.view.lines["s"].shape[1]
    lines = {name: np.repeat(values[:1], nodes, axis=0) for name, values in one.view.lines.items()}
    lines["s"] = np.full((nodes, bins), 0.55, np.float32)
    lines["s"][low] = 0.05
    lanes = [f"nid{number:06}" for number in range(nodes)]
    view = dataclasses.replace(one.view, lines=lines, lanes=lanes, worst=lines["s"].copy())
    return dataclasses.replace(one, view=view)


def test_a_low_node_is_seen_among_ten_thousand(tmp_path: Path) -> None:
    """In 16 of 16 places of the picture, and in what the page draws; nearest neighbours showed 22 % of the nodes."""
    places = [613 * i + 7 * (i % 5) + 3 for i in range(16)]
    got = large(10_000, places, tmp_path)
    picture = next(figure for name, _, _, figure in figures.figures(got) if name == "heat")
    pixels = matplotlib.image.imread(io.BytesIO(figures.png(picture, "x")))[..., :3]
    box = picture.axes[0].get_window_extent()
    scale = 150 / picture.dpi
    column = pixels[:, int(scale * (box.x0 + box.width / 2))]
    top, height = pixels.shape[0] - scale * box.y1, scale * box.height
    dark = column[:, 0] < 0.2  # cividis: 5 % is dark blue, 55 % is grey
    for place in places:
        y = int(top + (place + 0.5) / 10_000 * height)
        assert dark[max(0, y - 3) : y + 4].any(), place
    assert dark[int(top) : int(top + height)].mean() < 0.12
    matrix = content.content(got, ["heat"])["plots"]["heat"]
    worst = np.frombuffer(base64.b64decode(matrix["worst"]), np.uint8).reshape(10_000, matrix["columns"])
    assert sorted(np.flatnonzero(worst.max(axis=1) < 25)) == places and len(matrix["names"]) == 10_000
    assert len(html.render(got)) < 6_000_000
