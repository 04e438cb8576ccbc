"""The score's laws, and the loads that define what it must show."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from piolet.score import saturation
from piolet.score.peaks import Peaks, peaks_of
from piolet.score.saturation import LINKS, NEEDED, PIPES, Totals, score, summarise, totals

H100 = peaks_of("NVIDIA H100 80GB HBM3")
LENGTH = 12
BYTES = [name for link in LINKS for name in link[1:]]


def series(draw_missing: bool = False) -> st.SearchStrategy[dict[str, Any]]:
    share = st.floats(0, 1.25, width=32) | (st.just(float("nan")) if draw_missing else st.nothing())
    rate = st.floats(0, 2**40, width=32)
    return st.fixed_dictionaries(
        {name: arrays(np.float32, LENGTH, elements=rate if name in BYTES else share) for name in NEEDED}
    )


def result(values: dict[str, Any], peaks: Peaks = H100, seconds: Any = None) -> saturation.Score:
    seconds = np.ones(LENGTH) if seconds is None else seconds
    gpu = np.zeros(len(seconds), np.int64)
    return summarise(totals(score(values, peaks), seconds, gpu, 1), float(np.sum(seconds)))


def constant(**values: float) -> dict[str, Any]:
    return {name: np.full(LENGTH, values.get(name, 0.0), np.float32) for name in NEEDED}


@given(series(draw_missing=True))
def test_everything_is_a_share_and_the_waterfall_adds_up(values: dict[str, Any]) -> None:
    got = result(values)
    names = [
        "low",
        "high",
        "coverage",
        "compute",
        "memory",
        "network",
        "by_compute",
        "by_memory",
        "by_network",
        "above",
        "idle",
        "narrow",
        "stalled",
    ]
    for name in names:
        assert -1e-6 <= getattr(got, name) <= 1 + 1e-6, name
    if got.value is not None:
        assert got.low - 1e-6 <= got.value <= got.high + 1e-6
        assert got.idle + got.narrow + got.stalled + got.value == pytest.approx(1, abs=1e-5)
        assert got.by_compute + got.by_memory + got.by_network <= 1 + 1e-6
        assert got.value >= max(got.compute, got.memory, got.network) - 1e-6


@given(series(), st.sampled_from([*PIPES, "dram", *BYTES]), st.integers(0, LENGTH - 1), st.floats(0, 1, width=32))
def test_more_activity_never_lowers_the_score(values: dict[str, Any], name: str, at: int, more: float) -> None:
    before = result(values).value
    values[name][at] += np.float32(more * (450e9 if name in BYTES else 1))
    after = result(values).value
    assert before is not None and after is not None and after >= before - 1e-6


@given(series(draw_missing=True), st.integers(0, LENGTH))
def test_splitting_a_series_changes_nothing(values: dict[str, Any], cut: int) -> None:
    seconds = np.linspace(0.1, 1, LENGTH)
    zeros = np.zeros(LENGTH, np.int64)
    whole = totals(score(values, H100), seconds, zeros, 1)
    parts = Totals.zero(1)
    for part in (slice(0, cut), slice(cut, LENGTH)):
        piece = {name: array[part] for name, array in values.items()}
        parts = parts + totals(score(piece, H100), seconds[part], zeros[part], 1)
    one, other = summarise(whole, 20.0), summarise(parts, 20.0)
    for field in ("low", "high", "coverage", "compute", "memory", "by_memory", "idle", "stalled"):
        assert getattr(one, field) == pytest.approx(getattr(other, field), abs=1e-9)


@given(series())
def test_a_sample_may_be_counted_as_two_halves(values: dict[str, Any]) -> None:
    doubled = {name: np.repeat(array, 2) for name, array in values.items()}
    one, other = result(values), result(doubled, seconds=np.full(2 * LENGTH, 0.5))
    assert one.value == pytest.approx(other.value) and one.above == pytest.approx(other.above)


def test_idle_is_zero() -> None:
    got = result(constant())
    assert (got.value, got.idle, got.above, got.by_compute) == (0, 1, 0, 0)


def test_one_spinning_thread_is_busy_and_saturates_nothing() -> None:
    got = result(constant(engine=1.0, sm=1 / 132, occupancy=0.0002, fp32=0.0005))
    assert got.value == pytest.approx(0.0005, abs=1e-4)
    assert got.narrow > 0.99 and got.idle == 0


def test_a_copy_is_memory() -> None:
    got = result(constant(engine=1, sm=0.98, dram=0.92))
    assert got.value == pytest.approx(0.92) and got.by_memory == 1 and got.by_compute == 0


def test_a_matrix_product_is_compute_and_half_duty_is_half() -> None:
    full = constant(engine=1, sm=1, tensor=0.9, dram=0.3)
    half = {name: array * (np.arange(LENGTH) % 2 == 0) for name, array in full.items()}
    one, other = result(full).value, result(half).value
    assert one == pytest.approx(0.9) and other == pytest.approx(0.45)
    assert result(full).by_compute == 1 and result(half).by_compute == 0.5


def test_the_mean_of_the_maximum_sees_alternating_phases() -> None:
    values = constant(engine=1, sm=1)
    values["tensor"][::2] = 0.9
    values["dram"][1::2] = 0.9
    got = result(values)
    assert got.value == pytest.approx(0.9) and got.compute == pytest.approx(0.45) and got.by_memory == 0.5


def test_links_count_in_their_busier_direction() -> None:
    got = result(constant(engine=1, nvlink_tx=225e9, nvlink_rx=360e9))
    assert got.value == pytest.approx(0.8) and got.by_network == 1
    assert result(constant(engine=1, nvlink_rx=360e9), Peaks()).value == 0


def test_a_calibration_raises_the_score_to_what_can_be_reached() -> None:
    assert result(constant(dram=0.81), Peaks(eta_dram=0.9)).value == pytest.approx(0.9)


def test_missing_samples_make_a_range() -> None:
    values = constant(engine=1, sm=1, dram=0.5)
    values["dram"][:6] = np.nan
    got = result(values)
    assert got.is_range and got.value == pytest.approx(0.5)
    assert (got.low, got.high, got.coverage) == pytest.approx((0.25, 0.75, 0.5))


def test_without_pipes_or_memory_there_is_no_score() -> None:
    for name in ("dram",):
        values = constant(tensor=0.9)
        del values[name]
        assert result(values).value is None
    values = {name: array for name, array in constant(dram=0.9).items() if name not in PIPES}
    assert result(values).value is None
    assert summarise(Totals.zero(0), 0.0).value is None


def test_balance() -> None:
    assert saturation.balance(np.array([0.5, 0.5])) == 1
    assert saturation.balance(np.array([0.25, 0.75])) == pytest.approx(2 / 3)
    assert saturation.balance(np.array([0.0, np.nan])) == 1
