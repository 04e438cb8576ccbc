"""The page and the pictures of a report: what they say, what they may do, and what can be seen in them."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from piolet.samples.dataset import Dataset
from piolet.score.report import figures, html, screen, series
from piolet.score.summary import summarise

from tools import browser

Simulate = Callable[..., Dataset]
SCRIPT = "gpu\nload matmul 3\nload copy 2\ngpu\nload small 100\n"


class Seen(HTMLParser):
    """What a browser finds in a page: its tags, how many scripts, and what they name outside of it."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.scripts = 0
        self.outside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note one."""
        self.tags.add(tag)
        self.scripts += tag == "script"
        for name, value in attrs:
            assert not name.startswith("on")
            if name.rpartition(":")[2] in ("src", "href") and not (value or "").startswith(("#", "data:")):
                self.outside.append(value or "")


def data_of(page: str) -> Any:
    """Return what the page's script draws."""
    return json.loads(re.findall(r"<script type=application/json id=data>(.*?)</script>", page)[0])


def test_a_page_works_offline_and_escapes(simulate: Simulate) -> None:
    """Nothing is loaded, and what a user wrote is text."""
    data = simulate(SCRIPT, 10)
    evil = '"><img src=x onerror=alert(2)></script><script>alert(3)</script>'
    data.nodes[0].facts.header["command"] = "<script>alert(1)</script>"
    data.nodes[0].facts.header["label"] = evil
    data.nodes[0].facts.header["node"] = evil
    page = html.render(summarise(data))
    assert "<script>alert" not in page and "<img" not in page
    seen = Seen()
    seen.feed(page)
    assert not seen.outside and not seen.tags & {"img", "iframe", "object", "link", "base"}
    assert seen.scripts == 3 and "@import" not in page and "default-src 'none'" in page
    # The page's own script and style by their digests, and no other: what got in by a hole would not run.
    assert "unsafe-inline" not in page and " style=" not in page and page.count("<style") == 1
    names = re.findall(r' id="?([\w.-]+)', page)
    assert len(names) == len(set(names))
    assert data_of(page)["plots"]["heat"]["names"] == [f"{evil}:0", f"{evil}:1"]


def test_a_page_says_of_what_it_is(simulate: Simulate) -> None:
    """Job, user, command, environment, nodes, date; whose the host's figures are."""
    data = simulate(SCRIPT, 10)
    known = {"name": "llama", "user": "alice", "command": "srun -N1 --score train.py", "environment": "pytorch"}
    (data.directory / "step.json").write_text(json.dumps(known))
    page = html.render(summarise(data))
    for text in (
        "<h1>llama</h1>",
        "step 1.0",
        "alice",
        "srun -N1 --score train.py",
        "environment pytorch",
        "1 node (node)",
    ):
        assert text in page, text
    assert "Tue 14 Nov 2023, 22:13 UTC" in page and "NVIDIA H100 80GB HBM3" in page
    one = summarise(data)
    for collectors, said in (
        (("gpm (x)", "host (the whole node)"), "the whole node"),
        (("host (the step, by control groups of version 2)",), "the step, by control groups of version 2"),
    ):
        assert series.host_of(dataclasses.replace(one, collectors=collectors)) == said


PROBE = """{
const canvas = document.querySelector('[data-plot=saturation] canvas'), box = canvas.getBoundingClientRect();
const send = (kind, x, y) => canvas.dispatchEvent(new PointerEvent(kind,
  { clientX: box.left + x, clientY: box.top + y, bubbles: true }));
const found = [];
send('pointermove', box.width / 2, 60);
found.push(document.getElementById('tip').textContent.split('\\n')[1]);
send('pointerdown', 100, 60); send('pointermove', 300, 60); send('pointerup', 300, 60);
found.push(view.from > 0 && view.to < data.seconds);
document.querySelector('.reset').click();
found.push(view.from === 0 && view.to === data.seconds);
document.querySelectorAll('.sort th')[1].click();
found.push([...document.querySelectorAll('.sort tbody tr')].map(r => r.cells[0].textContent).join(','));
found.push(getComputedStyle(document.querySelector('figure > svg')).display);
found.push(document.documentElement.scrollWidth <= innerWidth);
document.title = 'found ' + found.join(' | ');
}"""


@pytest.fixture
def chromium() -> str:
    """Where the browser is."""
    program = browser.chromium()
    if program is None:
        pytest.skip("chromium is not installed")
    return program


def test_a_browser_shows_the_page(simulate: Simulate, tmp_path: Path, chromium: str) -> None:
    """Light and dark, wide and narrow, without an error: values under the pointer, zoom, sorted tables. A script that
    is not the page's own does not run."""
    page = html.render(summarise(simulate(SCRIPT, 10)))
    (tmp_path / "page.html").write_text(page.replace("</body>", f"<script>{PROBE}</script></body>"))
    done = browser.load(chromium, tmp_path / "page.html", tmp_path / "profile", "--dump-dom")
    assert "<title>found" not in done.stdout and "Content Security Policy" in done.stderr
    for theme, width in (("light", 1400), ("dark", 390)):
        said = browser.found(chromium, page, PROBE, tmp_path, width, theme).split(" | ")
        assert re.fullmatch(r"saturation: \d+\.\d %", said[0]), said
        assert said[1:] == ["true", "true", "node:1,node:0", "none", "true"], said


DRAWN = """{
const texts = [], write = CanvasRenderingContext2D.prototype.fillText;
CanvasRenderingContext2D.prototype.fillText = function(text, ...at) { texts.push(text); write.call(this, text, ...at) };
for (const plot of plots) if (plot.rows) plot.paint();
document.title = 'found ' + texts.join(' | ');
}"""


@pytest.mark.parametrize(
    ("names", "width", "shown"),
    [
        (["cluster-a100-nid001200:0", "cluster-a100-nid001277:3"], 1400, ["cluster-a100-nid001200:0"]),
        (["cluster-a100-nid001200:0", "cluster-a100-nid001277:3"], 390, ["rows: cluster-a100-nid…", "…001200:0"]),
        (["cluster-a100-with-long-names-nid001200", "x-nid001277"], 390, ["x-nid001277"]),
        (["n1:0", "n1:1"], 390, ["n1:0", "n1:1"]),
    ],
)
def test_names_of_rows_are_legible(
    simulate: Simulate, tmp_path: Path, chromium: str, names: list[str], width: int, shown: list[str]
) -> None:
    """Whole where there is room, else without what all begin with, which stands above; numbers stay whole."""
    got = summarise(simulate(SCRIPT, 10))
    page = html.render(dataclasses.replace(got, view=dataclasses.replace(got.view, lanes=names)))
    found = browser.found(chromium, page, DRAWN, tmp_path, width)
    assert set(shown) <= set(found.split(" | ")), found


EDGES = """{
Object.assign(data, { origin: -0.2, width: 0.2, bins: 5, seconds: 0.6 }); Object.assign(view, { from: 0, to: 0.6 });
const of = values => points({ inner: 600 }, values, 'mean').filter(([, value]) => value !== null)
  .map(([x, value]) => [Math.round(x), value]);
const ends = values => [of(values)[0], of(values).at(-1)].flat();
const found = [ends([null, 8, 8, 8, null]), ends([null, 8, null, null, null]), ends([null, 0, 8, 8, null])];
document.title = 'found ' + JSON.stringify([...found, of([null, 0, 8, 8, null])[2]]);
}"""


def test_a_bin_is_drawn_up_to_its_edges_beside_a_gap(simulate: Simulate, tmp_path: Path, chromium: str) -> None:
    """A run of 0.6 s without a reading before and behind it looked as if half of its time had no data."""
    page = html.render(summarise(simulate(SCRIPT, 10)))
    found = browser.found(chromium, page, EDGES, tmp_path)
    # Where it begins and ends, in pixels, with its values; and half way to the next one the mean.
    assert json.loads(found) == [[0, 8, 600, 8], [0, 8, 200, 8], [0, 0, 600, 8], [200, 4]]


def test_short_runs_are_drawn_from_edge_to_edge(simulate: Simulate) -> None:
    """A run of a second has six bins, of which half the first and half the last were missing."""
    got = summarise(simulate("gpu\nload matmul 100\n", 1.1))
    times, values = series.times(got.view), series.drawn(got.view.lines["s"].astype(float))
    assert (times[0], times[-1]) == pytest.approx((0, got.view.seconds), abs=0.01)
    assert values.shape[-1] == len(times) < 36 and (np.diff(times) >= 0).all() and not np.isnan(values).any()
    memory = next(panel for panel in series.power(got) if panel.title == "Device memory")
    assert not np.isnan(memory.mean).any()  # read once, and it stands for the second


def test_pictures_draw_a_bin_up_to_its_edges_beside_a_gap(simulate: Simulate) -> None:
    """As the page's script does: they ended in the middle of a bin, and drew a straight line over the gap."""
    got = summarise(simulate("gpu\nload matmul 100\n", 1.1))
    nan = np.nan
    assert series.drawn(np.array([nan, 8.0, 6.0, nan, 4.0])) == pytest.approx(
        [nan, nan, nan, 8, 8, 7, 7, 6, 6, nan, nan, nan, 4, 4, 4], nan_ok=True
    )
    times = series.times(got.view)
    assert times[2::3][:-1] == pytest.approx(times[3::3])  # a piece ends where the next begins
    panel = series.Panel("x", "", "#000000", np.array([8.0] * 2 + [nan] * 2 + [4.0] * 2), np.zeros((0, 6)), [], [])
    axes = Figure().subplots()
    figures._draw(axes, panel, np.repeat(np.arange(6.0), 3))
    assert np.isnan(axes.lines[0].get_ydata()).sum() == 6


def test_the_band_of_what_is_read_now_and_then_has_no_holes(simulate: Simulate) -> None:
    """It stood beside the line in some places only."""
    got = summarise(simulate("gpu\nload matmul 100\ngpu\nload copy 100\n", 8))
    memory = next(panel for panel in series.power(got) if panel.title == "Device memory")
    (_, low, high), *_ = memory.bands
    assert (high - low > 5).all() and not np.isnan(memory.mean).any()


def test_what_is_read_now_and_then_is_a_line(simulate: Simulate) -> None:
    """As far as readings are apart, and no farther: a gap stays a gap, at the edges as well."""
    view = dataclasses.replace(summarise(simulate("gpu\nload matmul 100\n", 1.1)).view, bin_seconds=0.25)
    values = np.full(60, np.nan)
    values[[10, 14, 18, 22, 50]] = 1, 2, 3, 4, 5
    got = series.bridged(values, view.bin_seconds)
    told = np.flatnonzero(~np.isnan(got))
    assert list(told) == [*range(6, 23), *range(50, 55)]
    assert got[6] == got[10] == 1 and got[12] == 1.5 and got[54] == 5


def test_the_page_can_be_read_without_its_script(simulate: Simulate) -> None:
    """Every figure is there as a picture, too."""
    page = html.render(summarise(simulate(SCRIPT, 10)))
    bare = re.sub("<script>.*?</script>", "", page, flags=re.DOTALL)
    assert bare.count("<figure><svg") == 4 and "class=live" not in bare
    for name in ("compute", "memory", "communication", "stalled", "narrow", "idle"):
        assert re.search(rf"</svg>{name}</span>", bare), name


def test_png_and_pdf(simulate: Simulate) -> None:
    """The same figures, with a title."""
    got = summarise(simulate(SCRIPT, 10))
    for _, title, _, figure in figures.figures(got):
        assert figures.png(figure, f"{got.title}: {title}").startswith(b"\x89PNG")
        assert any(text.get_text() == f"step 1.0: {title}" for text in figure.texts)
    assert figures.pdf(got, screen.render(got)).startswith(b"%PDF")


def test_bursts_are_a_mean_and_a_band(simulate: Simulate) -> None:
    """A load that works for 300 of 600 ms is drawn at its half, between nothing and all: no solid paint, no moire."""
    got = summarise(simulate("gpu\nload matmul 100 50 0.6\n", 100))
    tensor = next(panel for panel in series.activity(got) if panel.title == "Tensor activity")
    bins, drawn = tensor.mean[5:-5], series.pooled(tensor.mean)[3:-3]
    assert np.ptp(bins) > 40 and np.ptp(drawn) < 20 and drawn.mean() == pytest.approx(45, abs=2)
    (_, low, high), *_ = tensor.bands
    assert np.nanmin(low) < 5 and np.nanmax(high) > 85


def test_what_limited_adds_up(simulate: Simulate) -> None:
    """Compute, memory, communication and what clocks took are the saturation; with what was lost, all of the time."""
    got = summarise(simulate("gpu\nload matmul 3\nload copy 2\nload allreduce 1\n", 60))
    parts = {name: values for name, _, values in series.stack(got)}
    whole = np.sum(list(parts.values()), axis=0)
    assert whole[~np.isnan(whole)] == pytest.approx(1)
    shares = {name: part for name, _, part in series.shares(got)}
    assert sum(shares.values()) == pytest.approx(1) and got.score.value is not None
    used = ("compute", "memory", "communication", "throttled")
    assert sum(shares[name] for name in used) == pytest.approx(got.score.value)
    assert shares["compute"] + shares["throttled"] == pytest.approx(0.9 * 3 / 6, abs=0.02)
    assert shares["memory"] == pytest.approx(0.92 * 2 / 6, abs=0.02)
    blank = summarise(simulate("gpu\nload matmul 100\nblank 5 3\n", 20))
    assert [name for name, *_ in series.stack(blank)] == ["useful", "stalled", "narrow", "idle"]


def test_a_straggler_is_advice(simulate: Simulate) -> None:
    """GPU 15 works 40 % of the time, the others 70 %: it is named; its clock is low since it waits, and is not."""
    loads = "".join(f"gpu\nload matmul 60 {70 + i % 3} {0.9 + 0.05 * i:.2f}\n" for i in range(15))
    got = summarise(simulate(f"{loads}gpu\nload matmul 60 40 1.1\n", 120))
    found = {advice.rule: advice for advice in got.advice}
    assert "node GPU 15: saturation 36 %, the median of all is 6" in found["straggler"].seen, found
    assert "slow GPU" not in found
    assert "straggler" not in {a.rule for a in summarise(simulate(loads, 120)).advice}


def test_a_phase_that_is_mostly_idle_is_not_called_compute(simulate: Simulate) -> None:
    """It computed in 23 % of its time."""
    got = summarise(simulate("gpu\nload matmul 100 23 0.5\n", 60))
    assert {phase.what for phase in got.phases} == {"mostly idle"}
    busy = summarise(simulate("gpu\nload matmul 100\n", 60))
    assert {phase.what for phase in busy.phases} == {"compute"}


def test_what_is_not_known_has_no_colour(simulate: Simulate) -> None:
    """Counters that stood at 0 for a third of the time: neither used nor lost, no phase, and no balance of nothing."""
    got = summarise(simulate("gpu\nload matmul 100\nsilent 20 40\n", 60))
    shares = {name: part for name, _, part in series.shares(got)}
    assert sum(shares.values()) == pytest.approx(1) and shares["no data"] == pytest.approx(1 / 3, abs=0.01)
    assert shares["compute"] + shares.get("throttled", 0.0) == pytest.approx(got.saturation.low, abs=0.01)
    assert "no data 33 %" in html.render(got)
    assert [(round(phase.start), round(phase.end)) for phase in got.phases] == [(0, 20), (40, 60)]
    nothing = summarise(simulate("gpu\nload matmul 100\n" * 2, 20, 0.1, "nvml"))
    page = html.render(nothing)
    assert nothing.as_dict()["balance"] is None and "balance" not in page and "<svg class=bar" not in page
