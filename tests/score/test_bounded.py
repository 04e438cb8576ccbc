"""What a step leaves on a node is bounded, and the figures are those of all samples."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from piolet.base.errors import ScoreError
from piolet.samples import compact, journal
from piolet.samples.append import Appender
from piolet.samples.dataset import Dataset, Node, open_dataset
from piolet.samples.journals import journal_facts, known_of
from piolet.samples.writer import write
from piolet.score import peaks, rollup
from piolet.score.overview import summary_of
from piolet.score.summary import Summary, summarise

Simulate = Callable[..., Dataset]
# Compute and memory in turns, faster than samples are once they are thinned: the mean of the maximum shows whether
# figures were made before.
SCRIPT = "gpu\nload matmul 0.3\nload copy 0.3\ngpu\nload matmul 3\nload copy 2\n"
BOUND = 300_000


def written(source: Path, out: Path, bound: int, chunk: int = 1 << 14) -> Path:
    """Have the writer take a journal as it comes from the sampler; return what it makes."""
    read, end = os.pipe()
    feeder = subprocess.Popen(["/bin/cat", str(source)], stdout=end)
    os.close(end)
    try:
        return Path(write(read, str(out), "node", "1.0", bound, lambda: summary_of))
    finally:
        os.close(read)
        feeder.wait()


def same(one: Summary, other: Summary) -> None:
    """The figures are the same to the last digit that is shown."""
    for name in ("value", "coverage", "compute", "memory", "idle", "narrow", "stalled", "by_compute", "by_memory"):
        assert getattr(one.score, name) == pytest.approx(getattr(other.score, name), abs=1e-6), name
    for name in ("saturation", "utilisation", "energy", "coverage", "size"):
        mine, theirs = getattr(one, name), getattr(other, name)
        assert (mine.witness, mine.reason) == (theirs.witness, theirs.reason)
        assert mine.low == pytest.approx(theirs.low, rel=1e-6), name
    assert [advice.rule for advice in one.advice] == [advice.rule for advice in other.advice]


def test_a_long_step_stays_in_its_bound(simulate: Simulate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its figures are those of all samples, its samples fewer, and the report says so."""
    data = simulate(SCRIPT, 600)
    all_of_it = summarise(data)
    most = 0
    add = Appender.add

    def watched(self: Appender, piece: bytes) -> None:
        nonlocal most
        add(self, piece)
        most = max(most, os.fstat(self.fd).st_size)

    monkeypatch.setattr(Appender, "add", watched)
    path = written(data.nodes[0].path, tmp_path / "out", BOUND)
    assert data.nodes[0].path.stat().st_size > 8 * BOUND
    assert most < BOUND + (1 << 16) and path.name == "node.parquet"
    thin = open_dataset(tmp_path / "out")
    got = summarise(thin)
    same(got, all_of_it)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["node.host.parquet", "node.parquet"]
    (node,) = thin.nodes
    assert node.is_summed and node.facts.thinned >= 0.4
    rows = sum(len(chunk["end"]) for chunk in node.chunks(["engine"]))
    assert 100 < rows < 600 * 10 * 2 / 3
    covered = sum(float(chunk["span"].sum()) for chunk in node.chunks(["engine"]))
    assert covered == pytest.approx(2 * 600, rel=0.01)
    assert any(line.startswith("thinned: samples are kept as means over up to") for line in got.quality)
    assert not any(line.startswith("thinned") for line in all_of_it.quality)


def test_other_peaks_than_the_summarys_are_no_confirmed_figure(simulate: Simulate, tmp_path: Path) -> None:
    """A calibration that comes later finds thinned samples only: the mean of the maximum is at least what these say."""
    data = simulate("gpu\nload matmul 0.3\nload copy 0.3\n", 300)
    written(data.nodes[0].path, tmp_path / "out", BOUND // 3)
    model = data.nodes[0].facts.devices[0]["name"]
    table = {model: peaks.Peaks(eta_dram=0.999, source="the site's")}
    whole, thin = summarise(data, table), summarise(open_dataset(tmp_path / "out"), table)
    assert thin.saturation.value is None and "thinned" in thin.saturation.reason and thin.saturation.high is None
    assert thin.saturation.low is not None and whole.score.value is not None
    assert thin.saturation.low < whole.score.value - 0.05  # as it would be said if nothing was said
    assert any("1 node are made of means" in line or "1 node" in line for line in thin.quality if "thinned" in line)


def test_a_sampler_that_begins_again_goes_on_in_a_thinned_journal(simulate: Simulate, tmp_path: Path) -> None:
    """Its header is the second one, once, and its samples are behind those of the first."""
    first = simulate(SCRIPT, 300).nodes[0].path
    second = simulate(SCRIPT, 20, begin=330).nodes[0].path
    kept = tmp_path / "first"
    frames = [journal.frame(each.kind, each.body) for each in journal.read(str(first)) if each.kind != "E"]
    kept.write_bytes(b"".join(frames))
    path = written(kept, tmp_path / "out", BOUND)
    assert path.suffix == ".journal"
    path = written(second, tmp_path / "out", BOUND)
    assert path.suffix == ".parquet"
    got = summarise(open_dataset(tmp_path / "out"))
    assert any("restarted 1 times" in line for line in got.quality), got.quality
    assert got.score.coverage == pytest.approx(320 / 350, abs=0.01)


def test_thinning_by_quantity() -> None:
    """Means by what a sample covers; counters by their last; bits together; the worst XID. What is missing stays so."""
    nan = np.nan
    chunk: dict[str, Any] = {
        "device": np.array([0, 0, 0, 0, 1, 0]),
        "span": np.array([0.1, 0.3, 0.1, 0.1, 0.1, 0.1]),
        "end": (np.array([0.1, 0.4, 0.5, 0.6, 0.1, 1.7]) * 1e9).astype(np.int64),
        "sm": np.array([1.0, 0.0, nan, nan, 0.5, 0.25]),
        "energy": np.array([5.0, 6.0, 7.0, nan, 1.0, 9.0]),
        "clock_events": np.array([4.0, 32.0, nan, 4.0, nan, 0.0]),
        "xid": np.array([0.0, 79.0, 0.0, nan, 0.0, 0.0]),
        "power": np.array([100.0, 200.0, 300.0, 300.0, 50.0, 10.0]),
    }
    thin = compact.thinned(chunk, 10**9)
    ends, spans = np.round(thin["end"] / 1e9, 3).tolist(), np.round(thin["span"].astype(float), 3).tolist()
    rows = list(zip(thin["device"].tolist(), ends, spans, strict=True))
    # Two pieces of device 0: where SM activity was told, and where it was not; then the next second; then device 1.
    silent, told = 0, 1
    assert rows == [(0, 0.6, 0.2), (0, 0.4, 0.4), (0, 1.7, 0.1), (1, 0.1, 0.1)]
    assert thin["sm"][told] == pytest.approx(0.25) and np.isnan(thin["sm"][silent])
    assert thin["energy"][told] == 6 and thin["energy"][silent] == 7
    assert thin["clock_events"][told] == 36 and thin["xid"][told] == 79
    assert thin["power"][told] == pytest.approx(175)


def test_a_journal_that_cannot_be_made_smaller_grows_on(
    simulate: Simulate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is lost, and nothing half-written lies there."""

    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    data = simulate(SCRIPT, 100)
    before = summarise(data)
    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", full)
        patched.setattr("piolet.samples.writer.finish", lambda path, _: path)
        path = written(data.nodes[0].path, tmp_path / "out", BOUND)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["node.journal"]
    same(summarise(open_dataset(path.parent)), before)


def test_the_summary_stands_behind_the_end_mark(simulate: Simulate, tmp_path: Path) -> None:
    """srun's screen needs it, and reads nothing else of the journal."""
    data = simulate(SCRIPT, 60)
    node = data.nodes[0]
    from piolet.samples import writer

    fd = os.open(node.path, os.O_RDWR | os.O_APPEND)
    writer._leave_summary(fd, str(node.path), summary_of)
    os.close(fd)
    found = known_of(node.path)
    assert found is not None and found[1] and found[2] == 0
    assert found[0].complete and found[0] == journal_facts(node.path)
    blinded = bytearray(node.path.read_bytes())
    at = blinded.find(b"PSJ1G")
    blinded[at + 40 : at + 80] = b"\xff" * 40  # its samples are not looked at
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "node.journal").write_bytes(blinded)
    same(summarise(open_dataset(tmp_path / "x")), summarise(data))


@pytest.mark.parametrize("fault", ["cut", "bits", "bomb", "empty", "other"])
def test_a_summary_of_somebody_elses_is_data(simulate: Simulate, fault: str) -> None:
    """One that is none is refused in a sentence; one of another version is left, and the samples are read."""
    import zlib

    node = simulate(SCRIPT, 20).nodes[0]
    good = summary_of(node)
    bomb = zlib.compress(b"\0" * (80 << 20))
    data = {
        "cut": good[:-20],
        "bits": good[:30] + b"\xff\x00\xff" + good[33:],
        "bomb": len(bomb).to_bytes(4, "little") + bomb,
        "empty": b"",
        "other": good,
    }[fault]
    from piolet.score.overview import _gpus, _key, _Sums

    gpus = _gpus(node, {})
    begun = node.facts.start, 0.1
    hosts = [str(name) for name in node.facts.header["host_columns"]]
    sums = _Sums(gpus, *begun, hosts)
    if fault == "other":
        assert not rollup.unpack(data, sums, "other peaks")
        assert not rollup.unpack(data, _Sums(gpus, *begun, [*hosts, "of_a_later_release"]), _key(gpus))
        vars(sums)["of_a_later_release"] = 1
        assert not rollup.unpack(data, sums, _key(gpus))
        assert rollup.unpack(data, _Sums(gpus, *begun, hosts), _key(gpus))
        return
    with pytest.raises(ScoreError, match="a node's summary"):
        rollup.unpack(data, sums, _key(gpus))


def test_a_parquet_file_without_a_summary_is_read_whole(simulate: Simulate) -> None:
    """As those of earlier releases, and of GSSR."""
    from piolet.samples.dataset import finish

    data = simulate(SCRIPT, 60)
    before = summarise(data)
    finish(data.nodes[0].path)
    (node,) = open_dataset(data.directory).nodes
    assert isinstance(node, Node) and not node.summary
    assert summarise(open_dataset(data.directory)).score.value == pytest.approx(before.score.value, abs=1e-4)
