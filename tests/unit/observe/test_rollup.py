"""Bins have the means that the samples have, whatever their lengths are."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from piolet.observe import layout, reading, rollup, writing
from piolet.observe.reading import StepData

START = 1_700_000_000 * 10**9


def made(directory: Path, seconds: float, samples: list[dict[str, Any]], table: str = "gpu", **meta: Any) -> StepData:
    """Write a step of one table: each sample says at, span (s), node, gpu and its quantities."""
    writing.write_meta(
        directory, {"job": "1", "step": "0", "start": START, "end": START + round(seconds * 1e9), **meta}
    )
    rows: dict[str, Any] = {"time": [START + round(one["at"] * 1e9) for one in samples]}
    for name in {name for one in samples for name in one if name != "at"}:
        rows[name] = [one.get(name) for one in samples]
    writing.write_table(directory, table, rows)
    return reading.open_step(directory)


def brute(samples: list[dict[str, Any]], quantity: str, seconds: float) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and covered of each bin, by looking at every sample for every bin."""
    mean, covered = np.full(layout.BINS, np.nan), np.zeros(layout.BINS)
    width = seconds / layout.BINS
    for number in range(layout.BINS):
        total = time = 0.0
        for one in samples:
            part = min(one["at"], (number + 1) * width) - max(one["at"] - one["span"], number * width)
            if part > 0 and one.get(quantity) is not None:
                total += part * one[quantity]
                time += part
        if time:
            mean[number], covered[number] = total / time, time / width
    return mean, covered


@pytest.mark.parametrize(("seconds", "precision"), [(7.0, 0.03), (600.0, 2e-4), (5400.0, 2e-4)])
def test_bins_are_what_every_sample_says(tmp_path: Path, seconds: float, precision: float) -> None:
    """Samples that are longer than a bin, shorter, of all lengths, with gaps and nulls."""
    rng = np.random.default_rng(1)
    ends = np.sort(rng.uniform(0.0, seconds, 900))
    samples = [
        {"at": at, "span": (at - before) * rng.choice([1.0, 0.5]), "node": "a", "gpu": 0,
         "sm": None if rng.random() < 0.2 else float(rng.random()), "power": 100.0 * number}
        for number, (before, at) in enumerate(pairwise(ends))
    ]  # fmt: skip
    step = made(tmp_path, seconds, samples)
    for quantity, near in (("sm", precision), ("power", precision * 1e5)):
        mean, covered = brute(samples, quantity, seconds)
        lines = rollup.lines(step, quantity)
        assert lines.keys == (("a", 0),)
        large = covered > 0.1  # spans are kept to 0.1 ms
        assert np.allclose(lines.mean[0][large], mean[large], atol=near)
        assert np.allclose(lines.covered[0], covered, atol=max(1e-3, 4 * precision))
        there = ~np.isnan(lines.mean[0])
        assert np.all((lines.least[0] <= lines.mean[0] + near)[there])
        assert np.all((lines.most[0] >= lines.mean[0] - near)[there])
        assert np.array_equal(np.isnan(lines.least[0]), ~there)


def test_a_sample_fills_the_bins_that_it_covers(tmp_path: Path) -> None:
    samples = [
        {"at": 10.0, "span": 10.0, "node": "a", "gpu": 0, "sm": 0.5},
        {"at": 30.0, "span": 10.0, "node": "a", "gpu": 0, "sm": 1.0},
    ]
    lines = rollup.lines(made(tmp_path, 60.0, samples), "sm")
    assert np.allclose(lines.mean[0, :100], 0.5) and np.all(lines.covered[0, :100] == 1)
    assert np.all(np.isnan(lines.mean[0, 100:200])) and np.all(lines.covered[0, 100:200] == 0)  # missing is no zero
    assert np.allclose(lines.mean[0, 200:300], 1.0)
    assert np.all(np.isnan(lines.mean[0, 300:]))


def test_each_gpu_and_node_has_its_own_line_in_any_order_of_samples(tmp_path: Path) -> None:
    samples = [
        {"at": 60.0 * part, "span": 60.0, "node": node, "gpu": gpu, "sm": 0.1 * gpu + (0.01 if node == "b" else 0)}
        for part in (3, 1, 2) for node in "ba" for gpu in (1, 0)
    ]  # fmt: skip
    lines = rollup.lines(made(tmp_path, 180.0, samples), "sm")
    assert lines.keys == (("a", 0), ("a", 1), ("b", 0), ("b", 1))
    assert np.allclose(lines.mean, np.array([0.0, 0.1, 0.01, 0.11])[:, None])
    assert np.all(lines.covered == 1)


def test_overlapping_samples_cover_no_more_than_there_is(tmp_path: Path) -> None:
    samples = [{"at": 60.0, "span": 60.0, "node": "a", "gpu": 0, "sm": 0.5}] * 2
    lines = rollup.lines(made(tmp_path, 60.0, samples), "sm")
    assert np.allclose(lines.mean, 0.5) and lines.covered.max() == 1


def test_a_roll_up_that_is_written_is_read(tmp_path: Path) -> None:
    samples = [{"at": 10.0, "span": 10.0, "node": "a", "cpu": 2.0, "memory": 5.0}]
    step = made(tmp_path, 10.0, samples, "host")
    path = rollup.write(step)
    table = step.table("rollup")
    assert table.to_pylist() == rollup.of(step).to_pylist() and len(table) == 2 * layout.BINS
    (tmp_path / "host.parquet").unlink()  # the samples are gone after two years, and the lines are not
    assert path.exists()
    lines = rollup.lines(reading.open_step(tmp_path), "cpu")
    assert lines.keys == (("a", layout.HOST),) and np.allclose(lines.mean, 2.0)
    assert rollup.lines(reading.open_step(tmp_path), "sm").keys == ()


def test_a_step_without_samples_has_no_roll_up(tmp_path: Path) -> None:
    step = made(tmp_path, 10.0, [])
    assert len(rollup.of(step)) == 0
    assert rollup.lines(step, "sm").mean.shape == (0, layout.BINS)


def test_rows_of_thousands_of_gpus_are_of_several_bins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollup, "ROWS_MOST", 60 * 28 * 2)
    samples = [
        {"at": 60.0, "span": 60.0, "node": "a", "gpu": gpu, "sm": 0.25 * gpu, "uuid": f"GPU-{gpu}"} for gpu in (0, 1)
    ]
    step = made(tmp_path, 60.0, samples, devices={"a": [{}, {}]}, nodes=["a"])
    table = rollup.of(step)
    assert len(table) == 2 * 60 and set(table["bins"].to_pylist()) == {10}
    rollup.write(step)
    lines = rollup.lines(step, "sm")
    assert np.allclose(lines.mean[1], 0.25) and np.all(lines.covered == 1)


def test_a_short_step_has_no_finer_bins_than_samples(tmp_path: Path) -> None:
    samples = [{"at": 10.0 * part, "span": 10.0, "node": "a", "gpu": 0, "sm": 0.1 * part} for part in range(1, 7)]
    step = made(tmp_path, 60.0, samples, interval=10)
    assert len(rollup.of(step)) == 12
    lines = rollup.lines(step, "sm")
    assert np.allclose(lines.mean[0], np.repeat(0.1 * np.arange(1, 7), 100), atol=1e-4) and np.all(lines.covered == 1)


def test_pieces_add_up_to_the_whole(tmp_path: Path) -> None:
    """A long step is written in groups of rows by time."""
    rng = np.random.default_rng(2)
    samples = [
        {"at": float(at), "span": 1.0, "node": node, "gpu": 0, "sm": float(rng.random())}
        for node in "ab" for at in range(1, 1201)
    ]  # fmt: skip
    step = made(tmp_path, 1200.0, samples)
    whole = rollup.of(step)
    table = step.table("gpu")
    early = table.filter(np.array(table["time"].cast("int64")) < START // 1000 + 601_000_000)
    late = table.filter(np.array(table["time"].cast("int64")) >= START // 1000 + 601_000_000)
    writing.write_pieces(tmp_path, "gpu", [early, late])
    apart = rollup.of(reading.open_step(tmp_path))
    assert apart.drop(["mean", "covered"]).to_pylist() == whole.drop(["mean", "covered"]).to_pylist()
    assert np.allclose(apart["mean"], whole["mean"], atol=1e-6)
