"""`piolet top`: what the last samples of journals say, and the screen of it at any width, with and without colour."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
from piolet.base.errors import ScoreError
from piolet.observe import live, toptext
from piolet.observe.job import Happened
from piolet.observe.live import GpuNow, NodeNow
from piolet.samples import journal
from piolet.samples.journal import json_frame

from tests.unit.observe.journals import ORIGIN, busy, header, samples, write


def test_the_last_seconds_count(tmp_path: Path) -> None:
    """Means over the window, of each GPU by its own; a sample that is missing is no zero."""
    frames = [busy(0, 1.0, 0.0), busy(0, 99.0, 0.5, power=600.0, memory_used=40e9), busy(0, 100.0, 0.9)]
    write(tmp_path, header(), *frames, samples("N", -1, 100.0, cpu=3.5, memory=8e9))
    (node,) = live.now(tmp_path, clock=ORIGIN / 1e9 + 103)
    first, second = node.gpus
    assert first.saturation == pytest.approx(0.7) and first.limit == "compute"
    assert (first.power, first.memory) == (600.0, 0.5) and math.isnan(first.temperature)
    assert math.isnan(second.saturation) and second.limit == ""
    assert node.host == {"cpu": 3.5, "memory": 8e9} and node.age == pytest.approx(3.0)
    assert (node.name, node.ended, node.simulated) == ("n1", False, "scripted GPUs")


def test_of_a_long_journal_the_end_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the middle of a frame on; and what is torn at the end is left out."""
    monkeypatch.setattr(live, "_TAIL", 3000)
    many = [busy(0, float(at), 0.1) for at in range(100)]
    path = write(tmp_path, header(), *many, busy(0, 200.0, 0.9), busy(1, 200.0, 0.9)[:-5])
    (node,) = live.now(tmp_path)
    assert node.gpus[0].saturation > 0.7 and math.isnan(node.gpus[1].saturation)
    kinds = [frame.kind for frame in journal.tail(str(path), 3000)]
    assert kinds[0] == "H" and 5 < len(kinds) < 20


def test_a_frame_in_what_a_frame_says_is_none(tmp_path: Path) -> None:
    """The magic word in the middle of values, with a length that leads nowhere."""
    path = write(tmp_path, header(), json_frame("E", {"event": "PSJ1" * 20}), busy(0, 1.0, 0.5))
    assert [frame.kind for frame in journal.tail(str(path), 1 << 20)] == ["H", "E", "G"]


def test_nodes_that_have_ended(tmp_path: Path) -> None:
    write(tmp_path, header(), json_frame("E", {"event": "end", "at": 5}))
    (tmp_path / "n2.parquet").write_bytes(b"")
    (tmp_path / "n2.host.parquet").write_bytes(b"")
    assert [(one.name, one.ended) for one in live.now(tmp_path)] == [("n1", True), ("n2", True)]


@pytest.mark.parametrize(
    "frames",
    [
        (json_frame("H", {"version": 1}), busy(0, 1.0, 1.0)),
        (header(devices=1), samples("G", 0, 1.0, engine=1.0)[:20] + b"x" * 40),
        (json_frame("H", {"version": 99}),),
        (b"something else",),
        (header(gpu_columns=["a", 5]), busy(0, 1.0, 1.0)),
        (header(devices=0, collectors=5),),
    ],
)
def test_what_a_user_wrote_is_data(tmp_path: Path, frames: tuple[bytes, ...]) -> None:
    write(tmp_path, *frames)
    try:
        assert [gpu.limit for node in live.now(tmp_path) for gpu in node.gpus] in ([], [""])
    except ScoreError as error:
        assert str(tmp_path) in error.message


def test_there_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(ScoreError, match="holds no samples"):
        live.now(tmp_path)


def gpu(saturation: float) -> GpuNow:
    return GpuNow(saturation, "compute", 1.0, 0.5, 600.0, 60.0)


NODES = [
    NodeNow(f"node{at}", False, 0.5, (gpu(at / 10), gpu(math.nan)), {"cpu": 2.0, "memory": 4e9}) for at in range(10)
]
EVENT = Happened(1_790_000_000.0, "node3", "gpu.xid", "kernel", "fatal", "", "", "NVRM: Xid 79, " + "x" * 300, {})
SHOWN = toptext.Shown("job 112 (train)", "RUNNING", 754.0, 3600.0, NODES, [EVENT], ["something is missing"])


@pytest.mark.parametrize("width", [60, 80, 100, 200])
@pytest.mark.parametrize("color", [False, True])
def test_the_screen_fits(width: int, color: bool) -> None:
    text = toptext.render(SHOWN, width, 40, color)
    assert ("\x1b[" in text) == color
    if not color:
        assert max(map(len, text.splitlines())) <= width
        for word in (
            "job 112 (train)",
            "RUNNING",
            "13 min of 60 min",
            "45 % of 10 GPUs",
            "node3 gpu.xid",
            "is missing",
        ):
            assert word in text, (word, text)
        line = next(line for line in text.splitlines() if line.startswith(" node9"))
        assert " 90" in line and "u100" in line and "2.0" in line and "4.0" in line


def test_of_many_nodes_the_least_busy_are_shown() -> None:
    text = toptext.render(SHOWN, 80, 12, False)
    assert "node0" in text and "node9" not in text and "nodes more: these have the least saturation" in text
    assert len(text.splitlines()) <= 12 + 2


def test_what_is_not_known_is_no_number() -> None:
    silent = NodeNow("n1", False, 45.0, (gpu(math.nan),))
    text = toptext.render(dataclasses.replace(SHOWN, nodes=[silent], limit=None, ran=None), 100, 40, False)
    assert "silent 45 s" in text and "nan" not in text and " 0 " not in text and "% of" not in text.splitlines()[0]
    ended = toptext.render(dataclasses.replace(SHOWN, nodes=[NodeNow("n1", True, math.nan)]), 60, 40, False)
    assert "ended" in ended and "none" in ended
