"""Scripted loads through the real collectors, the sampler, the data set and the score: what each must show."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from piolet.samples.dataset import Dataset
from piolet.score import export
from piolet.score.report import html, screen
from piolet.score.summary import Summary, summarise

Report = Callable[..., Summary]
COLLECTORS = ("gpm", "dcgm")


@pytest.mark.parametrize("collector", COLLECTORS)
@pytest.mark.parametrize(
    ("load", "saturation", "limit"),
    [
        ("idle", 0.0, "none"),
        ("spin", 0.0003, "none"),
        ("copy", 0.92, "memory"),
        ("matmul", 0.9, "compute"),
        ("fp32", 0.85, "compute"),
        ("fp64", 0.9, "compute"),
        ("integer", 0.0, "none"),
        ("allreduce", 400 / 450, "network"),
    ],
)
def test_a_load_shows_what_it_is(report: Report, collector: str, load: str, saturation: float, limit: str) -> None:
    """Integer work is reported and not counted; a spinning thread saturates nothing."""
    got = report(f"gpu\nload {load} 100\n", 20, 0.1, collector).score
    assert got.value == pytest.approx(saturation, abs=1e-3)
    shares = {"compute": got.by_compute, "memory": got.by_memory, "network": got.by_network}
    for name, share in shares.items():
        assert share == (1 if name == limit else 0)


@pytest.mark.parametrize("collector", COLLECTORS)
def test_half_duty_is_half(report: Report, collector: str) -> None:
    """Whatever the period of the load, as a value is the mean over its span."""
    for period in ("0.35", "1", "0.02"):
        got = report(f"gpu\nload matmul 100 50 {period}\n", 21, 0.1, collector)
        assert got.score.value == pytest.approx(0.45, abs=0.012)


def test_spinning_is_full_utilisation_and_no_saturation(report: Report) -> None:
    """The user guide's example."""
    got = report("gpu\nload spin 100\n", 10)
    assert got.utilisation.value is not None and got.utilisation.value > 0.95
    assert got.score.value is not None and got.score.value < 0.001 and got.score.narrow > 0.98


def test_both_collectors_agree(report: Report) -> None:
    """The same script through DCGM's units and GPM's."""
    script = "gpu\nload matmul 3\nload copy 2\nload allreduce 1\nload offload 1\n"
    one, other = (report(script, 28, 0.1, name) for name in COLLECTORS)
    for field in ("value", "compute", "memory", "network", "idle", "narrow", "stalled", "by_network"):
        assert getattr(one.score, field) == pytest.approx(getattr(other.score, field), abs=0.01), field
    assert one.energy.value == pytest.approx(other.energy.value, rel=0.06)


def test_energy_is_the_counters_difference(report: Report) -> None:
    """660 W for 10 s, whatever the samples of power were."""
    got = report("gpu\nload matmul 100\n", 20)
    assert got.energy.value == pytest.approx(660 * 20, rel=0.06)


@pytest.mark.parametrize("collector", COLLECTORS)
def test_missing_values_are_missing(report: Report, collector: str) -> None:
    """Without DRAM activity there is no score, and the report says which value and why."""
    number, code = ("10", "3") if collector == "gpm" else ("1005", "2")
    got = report(f"gpu\nload matmul 100\nblank {number} {code}\n", 10, 0.1, collector)
    assert got.score.value is None
    assert any("dram" in line and "ot" in line and "upported" in line for line in got.quality), got.quality
    number = "13" if collector == "gpm" else "1008"  # FP16: one pipe of several, the score stands
    got = report(f"gpu\nload matmul 100\nblank {number} 3\n", 10, 0.1, collector)
    assert got.score.value == pytest.approx(0.9)


def test_a_sampler_that_is_held_up_says_so_and_loses_nothing_with_gpm(report: Report) -> None:
    """The next span is longer; the mean over it is right."""
    got = report("gpu\nload matmul 100 50 1\n", 20, 0.1, "gpm", 5, 9)
    assert got.score.value == pytest.approx(0.45, abs=0.01) and got.score.coverage > 0.99
    assert any("late" in line and "3.9" in line for line in got.quality), got.quality


def test_xid_errors_are_seen(report: Report) -> None:
    """By events with GPM, as a field with DCGM."""
    for collector in COLLECTORS:
        got = report("gpu\nload matmul 100\ngpu\nload matmul 100\nxid 79 4\n", 10, 0.1, collector)
        assert got.view.xids == [[], [79]], collector


@pytest.mark.parametrize("collector", COLLECTORS)
def test_an_xid_from_before_the_step_is_not_the_steps(report: Report, collector: str) -> None:
    """Its own still are."""
    got = report("gpu\nload matmul 100\nxid 79 4\n", 10, 0.1, collector, begin=20)
    assert got.view.xids == [[]] and not [advice for advice in got.advice if advice.rule == "errors"]
    got = report("gpu\nload matmul 100\nxid 79 4\nxid 31 25\n", 10, 0.1, collector, begin=20)
    assert got.view.xids == [[31]]


def test_utilisation_alone_makes_no_score(report: Report) -> None:
    """And says so."""
    got = report("gpu\nload matmul 100\n", 10, 0.1, "nvml")
    assert got.score.value is None and got.utilisation.value == pytest.approx(1, abs=0.02)
    assert "no profiling counters: saturation cannot be told from utilisation" in got.quality


def test_a_step_too_short_for_a_sample(report: Report) -> None:
    """Nothing is known, and nothing else is said."""
    got = report("gpu\nload matmul 100\n", 0, 0.1, "gpm")
    assert got.score.value is None and got.utilisation.is_withheld and got.cost is None
    assert [line for line in got.quality if "covered" not in line] == [
        "no sample was taken: the step was too short, or its GPUs did not answer"
    ]
    text = screen.render(got)
    assert "GPU saturation unknown" in text and "limited by" not in text and "utilisation" not in text
    page = html.render(got)
    assert "<b>unknown</b><span>GPU saturation" in page and "<svg class=bar" not in page
    assert "idle_ratio" not in export.to_openmetrics(got)


def test_phases_follow_the_script(report: Report) -> None:
    """Start-up, work, checkpoint, work."""
    got = report("gpu\nload idle 20\nload matmul 60\nload copy 20\nload idle 20\n", 120, 0.2)
    assert [phase.what for phase in got.phases] == ["idle", "compute", "memory", "idle"]
    assert [round(phase.start) for phase in got.phases] == [0, 20, 80, 100]


def test_every_figure_says_that_it_is_simulated(report: Report) -> None:
    """The mark comes from the library, and reaches everything that is made of its figures."""
    from piolet.score import compare
    from piolet.score.report import figures

    for collector in (*COLLECTORS, "nvml"):
        got = report("gpu\nload matmul 100\n", 10, 0.1, collector)
        assert got.simulated == "scripted GPUs"
    got = report("gpu\nload matmul 100\n", 10)
    texts = [html.render(got), screen.render(got), export.to_json(got), export.to_openmetrics(got)]
    texts += [compare.render(got, got, compare.compare(got, got))]
    texts += [figures.svg(figure, name) for name, _, _, figure in figures.figures(got)]
    assert all("simulated" in text.lower() for text in texts)


@pytest.mark.parametrize("collector", COLLECTORS)
@pytest.mark.parametrize(("load", "watt"), [("matmul", 650), ("spin", 120)])
def test_counters_that_are_silently_0_are_not_believed(report: Report, collector: str, load: str, watt: int) -> None:
    """Utilisation contradicts them, whatever the power is: no saturation, no idle time, no advice about it."""
    got = report(f"gpu\nload {load} 100\nsilent 0 100\n", 20, 0.1, collector)
    assert got.saturation.is_withheld and "stood at 0 or still" in got.saturation.reason
    assert got.score.value is None and got.coverage.value == 0 and got.power == pytest.approx(watt, rel=0.1)
    assert got.view.denied[0] > 19 and not got.advice
    page = screen.render(got)
    assert "GPU saturation unknown" in page and "useful" not in page
    # The power of a busy GPU confirms the utilisation; 120 W do not.
    assert got.utilisation.value == (1 if watt == 650 else None) and got.utilisation.high == 1


@pytest.mark.parametrize("load", ["spin", "idle"])
def test_what_is_almost_0_and_what_is_0_stays_so(report: Report, load: str) -> None:
    """One multiprocessor of 132 with an engine at 100 %, and nothing at all: both confirmed."""
    got = report(f"gpu\nload {load} 100\n", 20)
    assert got.saturation.value == pytest.approx(0, abs=0.001) and got.saturation.witness
    assert not got.view.denied.any() and got.coverage.value == pytest.approx(1)


def test_counters_that_fall_silent_for_a_while_make_a_range(report: Report) -> None:
    """The rest of the step is believed; utilisation that lags behind the end of work contradicts nothing."""
    got = report("gpu\nload matmul 100\nsilent 10 15\n", 20)
    assert (got.saturation.low, got.saturation.high) == pytest.approx((0.9 * 0.75, 0.9 * 0.75 + 0.25), abs=0.01)
    assert got.score.coverage == pytest.approx(0.75, abs=0.01)
    got = report("gpu\nload matmul 100 60 3\nsilent 10 16\n", 30)  # bursts under it
    assert got.view.denied[0] == pytest.approx(6, abs=1.3) and got.saturation.reason
    got = report("gpu\nload matmul 3\nload idle 5\n", 24)
    assert not got.view.denied.any() and got.saturation.value == pytest.approx(0.9 * 3 / 8, abs=0.01)


@pytest.mark.parametrize("collector", COLLECTORS)
def test_a_missing_pipe_is_no_zero(report: Report, collector: str) -> None:
    """A matrix product whose tensor pipe is blank: at least what is known, and the limit is unknown."""
    number = "5" if collector == "gpm" else "1004"
    got = report(f"gpu\nload matmul 100\nblank {number} 3\n", 10, 0.1, collector)
    assert got.saturation.low == pytest.approx(0.35) and got.saturation.high is None
    assert got.score.most == pytest.approx(0.99) and got.score.by_memory == 0 and got.score.unsure == 1
    assert {phase.what for phase in got.phases} == {"unknown"}
    page = screen.render(got)
    assert "GPU saturation at least 35 %" in page and "limited by" not in page and "useful at least 35 %" in page
    assert "at least 35 %" in html.render(got)


@pytest.mark.parametrize("collector", COLLECTORS)
def test_an_energy_counter_that_begins_again_is_added_up(report: Report, collector: str) -> None:
    """As after a reload of the driver; the power says that it is right."""
    got = report("gpu\nload matmul 100\nrestart 10 0\n", 20, 0.1, collector)
    assert got.energy.value == pytest.approx(660 * 20, rel=0.12) and got.energy.witness
    assert got.view.restarts[0] == 1
    text = export.to_openmetrics(got)
    assert "piolet_score_energy_joules{" in text and "} -" not in text


def test_energy_that_power_does_not_confirm_is_a_range(report: Report) -> None:
    """A counter that stands still, as some do."""
    got = report("gpu\nload matmul 100\nrestart 0 0\nblank 155 3\n", 20, 0.1, "dcgm")
    assert got.energy.value is None and got.energy.high is None and "power" in got.energy.reason


def test_utilisation_alone_is_not_confirmed_by_little_power(report: Report) -> None:
    """Without profiling counters; a spinning thread draws 120 W of 700."""
    got = report("gpu\nload spin 100\n", 10, 0.1, "nvml")
    assert got.utilisation.low is None and got.utilisation.high == pytest.approx(1, abs=0.02)
    assert "utilisation at most" in screen.render(got)


def test_a_shared_gpus_figures_are_bounds(simulate: Callable[..., Dataset]) -> None:
    """And both the page and the screen say so."""
    data = simulate("gpu\nload matmul 100 70 1\n", 20)
    event = {"event": "shared", "at": 0, "gpu": "GPU-00000000-0000-0000-0000-000000000000", "with": "2.0"}
    data.nodes[0].facts.events.append(event)
    got = summarise(data)
    assert got.saturation.low is None and got.saturation.high == pytest.approx(0.63, abs=0.01)
    assert got.energy.low is None and got.utilisation.low is None
    for page in (screen.render(got), html.render(got)):
        assert "at most 63 %" in page and "shared with step 2.0" in page
