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
from piolet.score.saturation import LINKS, NEEDED, PIPES, Totals, Weights, score, summarise, totals

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
        assert got.idle + got.narrow + got.stalled + got.unexplained + got.value == pytest.approx(1, abs=1e-5)
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


def test_a_missing_link_is_no_zero_where_there_may_be_one() -> None:
    """On a model that has it; one whose links are not known is bounded by what moved over the least of all."""
    values = constant(engine=1, sm=1, tensor=0.3)
    values["nvlink_tx"][:] = np.nan
    none = np.full(LENGTH, np.nan, np.float32)
    assert score(values, H100, {"nvlink"}).most.max() == 1 and score(values, H100).most.max() == pytest.approx(0.3)
    assert score(values, peaks_of("NVIDIA L40S"), {"nvlink", "c2c"}).most.max() == pytest.approx(0.3)
    got = score(constant(engine=1, sm=1, tensor=0.3, pcie_rx=4e9), Peaks())
    assert got.s.max() == pytest.approx(0.3) and got.most.max() == pytest.approx(4 / 7.88)
    assert score(values | {"nvlink_rx": none}, Peaks(), {"nvlink"}).most.max() == 1


def test_the_network_is_a_ceiling_where_it_is_the_steps() -> None:
    """25 GB/s over a network interface of 25 GB/s limit, whatever the links of the GPU could."""
    values = constant(engine=1, sm=0.2, pcie_tx=25e9) | {"nic": np.full(LENGTH, 0.98)}
    got = result(values)
    assert got.value == pytest.approx(0.98) and got.by_network == got.by_nic == 1
    values["nic_others"] = values.pop("nic")
    got = result(values)
    assert got.value == pytest.approx(25 / 63, abs=1e-3) and got.most == pytest.approx(0.98) and got.unsure == 1


def test_activity_at_a_lower_clock_is_less() -> None:
    """A busy tensor pipe at 60 % of the clock; links have another clock."""
    clocks = {"clock_share": np.full(LENGTH, 0.6), "memory_clock_share": np.ones(LENGTH)}
    got = result(constant(engine=1, sm=1, tensor=0.9, dram=0.3) | clocks)
    assert (got.value, got.rated, got.throttled) == pytest.approx((0.9, 0.54, 0.36))
    assert got.useful == pytest.approx(0.54) and got.ofu == pytest.approx(0.54) and got.unnamed == got.throttled
    assert result(constant(engine=1, nvlink_tx=450e9) | clocks).rated == 1
    assert result(constant(engine=1, dram=0.9) | clocks).rated == pytest.approx(0.9)
    unknown = result(constant(engine=1, sm=1, tensor=0.9))
    assert unknown.rated is None and unknown.throttled == 0 and unknown.ofu is None and unknown.clocked == 0


@pytest.mark.parametrize(
    ("mask", "named"),
    [(0x4, "power"), (0x80, "power"), (0x40 | 0x8, "heat"), (0x20 | 0x4, "heat"), (0x8, "hardware"), (0x2, "cap")],
)
def test_what_held_the_clock_back_is_named(mask: int, named: str) -> None:
    """By the driver's reasons, heat before power."""
    values = constant(engine=1, sm=1, tensor=0.8) | {"clock_share": np.full(LENGTH, 0.5)}
    values["memory_clock_share"] = np.ones(LENGTH)
    zeros = np.zeros(LENGTH, np.int64)
    got = summarise(totals(score(values, H100), np.ones(LENGTH), zeros, 1, np.full(LENGTH, float(mask))), LENGTH)
    assert getattr(got, named) == pytest.approx(0.4) == got.throttled


def test_what_was_not_told_explains_nothing() -> None:
    """Without engine activity nobody knows what was idle; without SM activity, what was narrow."""
    values = constant(sm=0.5, tensor=0.3)
    del values["engine"]
    got = result(values)
    assert (got.idle, got.narrow, got.stalled, got.unexplained) == pytest.approx((0, 0, 0.2, 0.5))
    values = constant(engine=0.8, tensor=0.3)
    del values["sm"]
    got = result(values)
    assert (got.idle, got.narrow, got.stalled, got.unexplained) == pytest.approx((0.2, 0, 0, 0.5))


def test_weights_make_another_aggregate() -> None:
    """Only what they are to each other matters."""
    c, m, n = np.array([0.8, 0.1]), np.array([0.6, 0.0]), np.array([0.0, 0.4])
    for weights, found in (
        (Weights(), [0.8, 0.4]),
        (Weights(2, 2, 2), [0.8, 0.4]),
        (Weights(1, 2, 1), [0.6, 0.2]),
        (Weights(0, 1, 0), [0.6, 0]),
    ):
        assert weights.aggregate(c, m, n) == pytest.approx(found)
    assert Weights(3, 3, 3).text == "" and Weights(1, 2, 0.5).text == "compute 1, memory 2, communication 0.5"
