"""The clock: scripted loads through the collectors to S_rated, its cause, OFU and the estimate of MFU."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from piolet.samples.dataset import Dataset
from piolet.score.report import html, screen
from piolet.score.saturation import Weights
from piolet.score.summary import Summary, summarise

Report = Callable[..., Summary]
COLLECTORS = ("gpm", "dcgm")


@pytest.mark.parametrize("collector", COLLECTORS)
@pytest.mark.parametrize(
    ("load", "now", "clock", "cause"),
    [("capped", 0.85, 1200, "power"), ("hot", 0.85, 1100, "heat"), ("copy", 0.92, 1980, ""), ("idle", 0.0, 345, "")],
)
def test_a_lower_clock_is_a_part_of_its_own(
    report: Report, collector: str, load: str, now: float, clock: float, cause: str
) -> None:
    """A tensor pipe that is busy at 60 % of the clock does not do what it could; memory has a clock of its own."""
    got = report(f"gpu\nload {load} 100\n", 20, 0.1, collector)
    rated = now * clock / 1980 if cause else now
    assert got.saturation.value == pytest.approx(now, abs=0.005)
    assert got.rated.value == pytest.approx(rated, abs=0.005) and got.rated.witness
    assert got.score.throttled == pytest.approx(now - rated, abs=0.005)
    if cause:
        assert getattr(got.score, cause) == pytest.approx(got.score.throttled)
        page = screen.render(got)
        assert re.search(rf"of what GPUs at their highest clock could do; lost to {cause} 3\d %", page), page
        assert "throttled 3" in page
        assert "throttled" in html.render(got)


@pytest.mark.parametrize("collector", COLLECTORS)
def test_a_power_limit_that_somebody_set_is_named(report: Report, collector: str) -> None:
    """Below the device's own: it is the site's, and no property of the GPU."""
    got = report("gpu\npower_limit 400000\nload capped 100\n", 20, 0.1, collector)
    page = " ".join(screen.render(got).replace("│", "").split())
    assert "lost to power (limited to 400 of 700 W) 33 %" in page, page
    assert "limited to" not in screen.render(report("gpu\nload capped 100\n", 20, 0.1, collector))


def test_a_clock_that_nobody_explains_is_no_value(report: Report) -> None:
    """The driver's reasons confirm it: 1755 of 1980 MHz, and no reason."""
    got = report("gpu\nload matmul 100\n", 20)
    assert (got.rated.low, got.rated.high) == pytest.approx((0.9 * 1755 / 1980, 0.9), abs=0.005)
    assert "does not say why" in got.rated.reason and got.score.unnamed > 0.1


@pytest.mark.parametrize("collector", COLLECTORS)
@pytest.mark.parametrize("load", ["fp32 100 70 0.7", "fp32 100 70 5", "fp32 7\nload idle 3", "capped 100 70 0.7"])
def test_a_clock_that_drops_while_nothing_runs_is_no_loss(report: Report, collector: str, load: str) -> None:
    """70 % of the time busy at the highest clock, or at 1,200 MHz for power: no more is lost than while it is busy."""
    got = report(f"gpu\nload {load}\n", 40, 0.1, collector)
    capped = load.startswith("capped")
    now = 0.7 * 0.85
    assert got.saturation.value == pytest.approx(now, abs=0.01)
    lost = now * (1 - 1200 / 1980) if capped else 0.0
    assert got.score.unnamed == pytest.approx(0, abs=0.001)
    assert got.score.throttled == got.score.power == pytest.approx(lost, abs=0.01)
    assert got.rated.low is not None and got.rated.high is not None
    assert got.rated.low <= now - lost + 0.01 and got.rated.high >= now - lost - 0.01
    assert got.rated.value is not None or "clocks are told in" in got.rated.reason


def test_ofu_and_mfu(report: Report) -> None:
    """Tensor activity times clock; at the data sheet's clock of an H100, 1830 MHz, a little more."""
    got = report("gpu\nload matmul 100\n", 20)
    assert got.ofu.value == pytest.approx(0.9 * 1755 / 1980, abs=0.005) and got.ofu.witness
    done = 0.9 * 1755 / 1830
    assert (got.mfu.low, got.mfu.high) == pytest.approx((0.75 * done - 0.02, done + 0.02), abs=0.005)
    page = screen.render(got)
    assert "OFU 80 % (tensor activity times clock), MFU estimated 63 % to 88 %" in page, page
    other = report("gpu\nname NVIDIA GB200\nload matmul 100\n", 20)
    assert other.ofu.value == got.ofu.value and other.mfu.is_withheld and "NVIDIA GB200" in other.mfu.reason


def test_without_clocks_nothing_is_claimed(report: Report) -> None:
    """The saturation stays; what it would be at the highest clock is at most that."""
    got = report("gpu\nload matmul 100\nfail nvmlDeviceGetMaxClockInfo 3\n", 10)
    assert got.saturation.value == pytest.approx(0.9) and got.score.throttled == 0
    assert got.rated.low is None and got.rated.high == pytest.approx(0.9) and got.ofu.is_withheld
    got = report("gpu\nload matmul 100\nblank 100 2\n", 10, 0.1, "dcgm")
    assert got.rated.low is None and got.rated.reason == "no clock is told"


def test_an_unknown_model_is_not_judged_by_its_links(report: Report) -> None:
    """What moved is little, or may have been the limit: both are said."""
    got = report("gpu\nname NVIDIA X900\nload matmul 100\n", 10)
    assert got.saturation.value == pytest.approx(0.9) and got.mfu.is_withheld
    got = report("gpu\nname NVIDIA X900\nload allreduce 100\n", 10)
    assert got.saturation.low == pytest.approx(0.3) and got.saturation.high is None
    assert "communication is not judged: nothing is known of the links of NVIDIA X900" in got.saturation.reason


def test_weights_are_named_and_change_one_curve_only(simulate: Callable[..., Dataset]) -> None:
    """A copy of which compute counts most: the saturation stays, the aggregate is another."""
    data = simulate("gpu\nload copy 100\n", 10)
    plain, weighted = summarise(data), summarise(data, None, True, Weights(2, 1, 1))
    assert weighted.saturation.value == plain.saturation.value and plain.view.weights.text == ""
    assert weighted.aggregated == pytest.approx(0.46) and plain.aggregated == pytest.approx(0.92)
    text = "compute 2, memory 1, communication 1"
    assert f"aggregated 46 %, by {text}" in screen.render(weighted) and "aggregated" not in screen.render(plain)
    pages = html.render(weighted), html.render(plain)
    assert f"dashes: aggregated by {text}" in pages[0] and "aggregated by compute" not in pages[1]
