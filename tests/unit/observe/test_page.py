"""The page of a job: what it says of a simulated incident, what it may do, and what hostile names make of it."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from piolet.observe import reading, writing
from piolet.observe.job import Change, Changes, Environment, Job, Reason, Run, Step, Vetting
from piolet.observe.page import grid as grids
from piolet.observe.page import html, panels, saturation, track
from piolet.score.report import series

from tools import browser, incident

ENDED = Step("0", "train", "FAILED", 0, 9, ("n1",), None, None)
FAILED = Run(0, "FAILED", 0, 9, "", ("n1",), None, None, (ENDED,))
EVIL = "\"><img src=x onerror=alert(2)></script><script>window.pwned = 1</script>'"
TURNED = "node\u202e1edon"


@pytest.fixture(scope="module")
def step(tmp_path_factory: pytest.TempPathFactory) -> reading.StepData:
    """The simulated incident."""
    return reading.open_step(incident.write(tmp_path_factory.mktemp("incident") / "4242.0", incident.FINDINGS))


@pytest.fixture(scope="module")
def page(step: reading.StepData) -> str:
    """Its page."""
    return html.render(step, incident.JOB).decode()


@pytest.fixture
def chromium() -> str:
    """Where the browser is."""
    program = browser.chromium()
    if program is None:
        pytest.skip("chromium is not installed")
    return program


class Seen(HTMLParser):
    """What a browser finds in a page: tags, what they name outside of it, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.outside: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note one."""
        self.tags.append(tag)
        for name, value in attrs:
            assert not name.startswith("on") and name != "style"
            if name.rpartition(":")[2] in ("src", "href") and not (value or "").startswith(("#", "data:image/png;")):
                self.outside.append(value or "")

    def handle_data(self, data: str) -> None:
        """Note a text."""
        self.text += data


def data_of(page: str, name: str = "data") -> Any:
    """Return what the page's script draws."""
    return json.loads(re.findall(rf"<script type=application/json id={name}>(.*?)</script>", page)[0])


def panel_of(page: str, title: str) -> Any:
    """Return the panel of a title."""
    return next(each for each in data_of(page)["plots"]["lines"]["panels"] if each["title"].startswith(title))


def test_the_page_names_what_went_wrong(page: str) -> None:
    """Who, what, where and how bad; what changed; whose environment; what is not known and why."""
    seen = Seen(page)
    for text in (
        "train-7b", "alice", "16 GPUs on 4 nodes", "completed", "exit 0", "Simulated figures",
        "GPU 2 of node3 works at 1080 MHz", "--exclude=node3", "an operation on /scratch took 190 ms", "effect 38 %",
        "Against job 4190, which ended on 29 Nov 2026, 00:53 UTC.", "pytorch:26.09-py3", "sha256:5f0c3a9be1d2",
        "left out: node5", "the sampler was restarted",
        "no library libdcgm.so.4",
    ):  # fmt: skip
        assert text in seen.text, text
    lanes = {lane["name"]: lane["items"] for lane in data_of(page)["plots"]["track"]["lanes"]}
    assert [item[:2] for item in lanes["findings"]] == [[1200, 3600]] and lanes[""][0][:2] == [2280, 2760]
    assert lanes["no data"] == [[1500, 1620, "gap", "samples, node2: the sampler was restarted"]]
    assert [item[3] for item in lanes["marks"]] == ["epoch = 0", "epoch = 1", "epoch = 2"]
    assert len(lanes["events"]) == 6


def test_figures_are_the_data(step: reading.StepData, page: str) -> None:
    """The lines, by a second way of adding up; what was not told is null, and no zero."""
    gpu = step.table("gpu")
    power = gpu["power"].to_numpy().astype(float)
    end = (gpu["time"].to_numpy().astype("datetime64[us]").astype(np.int64) * 1000 - step.start) / 1e9
    drawn = panel_of(page, "Power of a GPU")
    for at in (7, 150, 420, 599):  # bins of 6 s, samples of 10 s
        cut = np.clip(np.minimum(end, 6 * (at + 1)) - np.maximum(end - 10, 6 * at), 0, None)
        lanes = gpu["node"].to_numpy().astype(str) + gpu["gpu"].to_numpy().astype(str)
        each = [(power[lanes == lane] @ cut[lanes == lane]) / cut[lanes == lane].sum() for lane in np.unique(lanes)]
        assert drawn["mean"][at] == pytest.approx(np.mean(each), abs=0.06)
    wait = panel_of(page, "An operation of /scratch took")
    assert np.mean(wait["mean"][390:450]) == pytest.approx(190, rel=0.1) and np.mean(wait["mean"][:300]) < 5
    heat = data_of(page)["plots"]["heat"]
    cells = np.frombuffer(base64.b64decode(heat["mean"]), np.uint8).reshape(16, heat["columns"])
    gone = cells == 255
    assert gone[4:8, 126:134].all() and not gone[[0, 1, 2, 3, *range(8, 16)]].any() and gone.sum() == 40


def test_a_page_asks_nobody_and_is_small(page: str) -> None:
    """No request of its own; scripts and style by their digests; HTML and script 60 kB, the first data 100 kB."""
    seen = Seen(page)
    assert not seen.outside and not set(seen.tags) & {"iframe", "object", "link", "base"}
    assert "unsafe" not in page.partition("<style>")[0] and "default-src 'none'" in page and "@import" not in page
    names = re.findall(r' id="?([\w.-]+)', page)
    assert len(names) == len(set(names))
    parts = re.split(r"<script type=application/json id=(?:data|map\d+)>(.*?)</script>", page)
    text, first = "".join(parts[::2]), parts[1]
    assert len(gzip.compress(text.encode())) < 60_000 and len(gzip.compress(first.encode())) < 100_000
    assert seen.tags.count("script") == 2 + len(parts) // 2


def hostile(directory: Path) -> reading.StepData:
    """Return the incident with every name and text that somebody else chose turned against the page."""
    incident.write(directory)
    for table, columns in (
        ("gpu", ("node", "uuid")), ("host", ("node",)), ("io", ("node", "mount", "kind")),
        ("net", ("node", "port", "kind")), ("events", ("node", "subject", "kind", "source", "text")),
        ("marks", ("name", "origin")), ("quality", ("node", "source", "reason")),
    ):  # fmt: skip
        rows = reading.open_step(directory).table(table)
        own = {name: rows[name].to_pylist() for name in columns}
        changed = {name: [None if v is None else f"{EVIL}{v}" for v in values] for name, values in own.items()}
        rest = {name: rows[name] for name in rows.column_names if name not in columns}
        writing.write_table(directory, table, rest | changed)
    texts = dict.fromkeys(("detector", "node", "subject", "unit", "text", "advice"), f"{EVIL}{TURNED}")
    finding = {**incident.FINDINGS[0], **texts, "evidence": json.dumps({EVIL: [EVIL, {EVIL: EVIL}]})}
    writing.write_table(directory, "findings", {name: [value] for name, value in finding.items()})
    meta = json.loads((directory / "meta.json").read_text())
    for name in ("cluster", "user", "account", "partition", "name", "command", "state", "exit", "simulated"):
        meta[name] = EVIL
    meta |= {"nodes": [f"{EVIL}{node}" for node in incident.NODES], "environment": {EVIL: {"variables": {EVIL: EVIL}}}}
    meta |= {"vetting": {EVIL: [EVIL, {"a": EVIL}]}, "devices": {f"{EVIL}node1": [{"name": EVIL}]}}
    writing.write_meta(directory, meta)
    return reading.open_step(directory)


def told() -> Job:
    """Return a job of which everything is hostile."""
    changes = Changes(EVIL, 1.0, (Change(EVIL, EVIL, EVIL, EVIL),), (EVIL,), (EVIL,))
    environment = Environment((EVIL,), EVIL, EVIL, EVIL, (EVIL,), f"{EVIL}\nHF_TOKEN = 'abcdef'", (EVIL,))
    vetting = Vetting(EVIL, 1.0, 1.0, (EVIL,), (EVIL,), {EVIL: (EVIL,)}, (EVIL,), EVIL, EVIL)
    reason = Reason("program", EVIL, (EVIL,), EVIL)
    return dataclasses.replace(
        incident.JOB, changes=changes, environments=(environment,), vettings=(vetting,), why=(reason,), missing=(EVIL,)
    )


def test_hostile_names_are_text(tmp_path: Path, chromium: str) -> None:
    """A browser runs nothing of them, finds no tag of theirs, and shows them as they are."""
    page = html.render(hostile(tmp_path / "1.0"), told()).decode()
    seen = Seen(page)
    plain = Seen(html.render(reading.open_step(incident.write(tmp_path / "2.0"))).decode())
    assert set(seen.tags) - set(plain.tags) <= {"details", "summary", "pre"} and not seen.outside
    assert "abcdef" not in page and "\u202e" not in page and "node\ufffd1edon" in page
    probe = """{
for (const plot of plots) plot.tell(plot.inner / 2, 30, 300, 300);
const heads = [...document.querySelectorAll('h1, b, td, dd')].map(one => one.textContent);
const images = [...document.images].every(image => image.naturalWidth > 50);
document.title = 'found ' + [String(window.pwned), images, document.scripts.length,
  heads.filter(text => text.includes('window.pwned = 1\\x3c/script>')).length > 10].join(' | ');
}"""
    extra = seen.tags.count("script")
    assert browser.found(chromium, page, probe, tmp_path) == f"undefined | true | {extra + 1} | true"


PROBE = """{
const found = [], of = name => plots.find(plot => plot.panel && plot.panel.title.startsWith(name));
const power = of('Power of a GPU'), clock_ = of('SM clock'), box = power.canvas.getBoundingClientRect();
const near = (a, b) => Math.abs(a - b) < .01, whole = () => near(view.from, 0) && near(view.to, data.seconds);
const send = (kind, x) => power.canvas.dispatchEvent(
  new PointerEvent(kind, { clientX: box.left + power.left + x, clientY: box.top + 40, bubbles: true }));
send('pointermove', power.inner / 2);
const said = tip.textContent.split('\\n');
found.push(Math.round(view.at), said[0].includes('2026-11-30 01:23:20 UTC'), said[1].startsWith('mean: '));
send('pointerdown', 40); send('pointermove', 140); send('pointerup', 140);
found.push(view.from > 0 && view.to < data.seconds, view.from === clock_.time(0));
document.querySelector('.reset').click();
found.push(whole());
// Keys alone: a slider that tells where it is, and zooms.
const slider = clock_.canvas;
slider.focus();
const press = key => document.activeElement.dispatchEvent(
  new KeyboardEvent('keydown', { key, bubbles: true, cancelable: true }));
press('End'); press('ArrowLeft');
found.push(document.activeElement === slider, slider.getAttribute('role'), slider.getAttribute('aria-valuenow'),
  slider.getAttribute('aria-valuetext').includes('mean: '));
press('+'); found.push(near(view.to - view.from, data.seconds / 2));
press('Escape'); found.push(whole());
// What a finding is about; another map; a table, with keys.
document.querySelectorAll('[data-from]')[1].click();
found.push(view.from < 2280 && view.to > 2760 && view.to - view.from < 1000);
document.querySelector('.reset').click();
const heat = plots.find(plot => plot.rows);
document.querySelector('[data-choice=map3]').click();
found.push(heat.own.unit, heat.values(heat.inner * .9, TOP + 10.5 * heat.perRow())[1]);
const head = document.querySelector('#quality th');
head.focus(); press('Enter');
found.push(String(head.getAttribute('aria-sort')), plots.every(plot => plot.canvas.getAttribute('aria-label')));
found.push(innerWidth, document.documentElement.scrollWidth);
document.title = 'found ' + found.join(' | ');
}"""


@pytest.mark.parametrize(("width", "theme"), [(1400, "light"), (390, "dark")])
def test_a_browser_shows_the_page(page: str, tmp_path: Path, chromium: str, width: int, theme: str) -> None:
    """One cursor and one zoom for all lines, by pointer and by keys; findings, maps and tables; no line too wide."""
    found = browser.found(chromium, page, PROBE, tmp_path, width, theme).split(" | ")
    assert found[:6] == ["1800", "true", "true", "true", "true", "true"], found
    assert found[6:12] == ["true", "slider", "3564", "true", "true", "true"], found
    assert found[12:14] == ["true", "°C"] and re.fullmatch(r"mean: 8\d °C", found[14]), found
    sorted_ = "ascending" if width > 640 else "null"  # rows of a narrow page have no heads
    assert found[15:18] == [sorted_, "true", str(width)] and int(found[18]) <= width, found


def test_titles_stay_within_their_plots(page: str, tmp_path: Path, chromium: str) -> None:
    """Short ones as they are; of a long one the middle goes, since its begin says what it is, and its end the unit."""
    title = "An operation of /scratch/alice/a/very/long/way/to/the/data took (ms)"
    script = f"""{{ const g = plots[0].g; g.font = '12px sans-serif';
      const long = fitted(g, '{title}', 200), narrow = fitted(g, '{title}', 1);
      const said = ['loss', 'x', ''].map(text => fitted(g, text, 200)), fits = g.measureText(long).width <= 200;
      document.title = `found ${{said.join(',')}} | ${{fits}} | ${{long}} | ${{narrow.length < 9}}`; }}"""
    said = browser.found(chromium, page, script, tmp_path, 390).split(" | ")
    assert said[:2] == ["loss,x,", "true"] and said[3] == "true"
    assert re.fullmatch(r"An oper.*\u2026.*took \(ms\)", said[2]), said


def test_the_page_can_be_read_without_its_script(page: str, tmp_path: Path, chromium: str) -> None:
    """Lines and a heat map are pictures, too, which the script hides; unless it fails."""
    bare = re.sub(r"script-src [^;]*;", "script-src 'none';", page, count=1)
    broken = page.replace("<script type=application/json id=data>", "<script type=application/json id=data>no JSON ", 1)
    for at, variant in enumerate((page, bare, broken)):
        (tmp_path / "page.html").write_text(variant)
        flags = ("--virtual-time-budget=2000", "--dump-dom")
        done = browser.load(chromium, tmp_path / "page.html", tmp_path / f"profile{at}", *flags)
        assert ('class="live"' in done.stdout) is (variant is page), at
        assert done.stdout.count("<polyline") >= 16
    picture = Image.open(io.BytesIO(base64.b64decode(re.findall(r"data:image/png;base64,([^\"]+)", page)[0])))
    assert picture.size == (data_of(page)["plots"]["heat"]["columns"], 16)
    gone = np.array(picture.convert("RGBA"))[:, :, 3] == 0
    assert gone.sum() == 40 and gone[4:8].sum() == 40


def test_what_is_not_there_has_no_place(tmp_path: Path) -> None:
    """A step without samples, one without GPUs, one that runs: a page each, which says what is missing."""
    meta = {"job": "7", "step": "batch", "start": incident.START, "nodes": ["n1"]}
    writing.write_meta(tmp_path, meta)
    page = html.render(reading.open_step(tmp_path)).decode()
    seen = Seen(page)
    assert "No samples of this step are kept" in seen.text and "so far" in seen.text and "running" in seen.text
    assert "data-plot=heat" not in page and "saturation" not in seen.text.partition("class Plot")[0]
    ends = incident.START + np.arange(10, 310, 10) * 10**9
    rows = {"time": ends, "span": [10.0] * 30, "node": ["n1"] * 30, "cpu": [3.0] * 30}
    writing.write_table(tmp_path, "host", rows)
    writing.write_meta(tmp_path, meta | {"end": incident.START + 600 * 10**9, "state": "NODE_FAIL"})
    page = html.render(reading.open_step(tmp_path)).decode()
    seen = Seen(page)
    assert "Samples cover 50 %" in seen.text and "node fail" in seen.text and "of 50 % of the time" in seen.text
    assert [each["title"] for each in data_of(page)["plots"]["lines"]["panels"]] == ["Cores in use"]
    drawn = panel_of(page, "Cores in use")["mean"]
    assert set(drawn[:300]) == {3.0} and set(drawn[300:]) == {None}


def test_what_a_quota_held_up_is_a_number_of_cores(tmp_path: Path) -> None:
    """It is of all processors together, and so no share of the time, as waits are. Where it is 0 it has no plot."""
    bins = np.arange(10, 310, 10)
    rows: dict[str, Any] = {"time": incident.START + np.tile(bins, 2) * 10**9, "span": [10.0] * 60}
    rows |= {"node": ["n1"] * 30 + ["n2"] * 30, "cpu": [1.0] * 60, "io_pressure": [0.25] * 60}
    meta: dict[str, Any] = {"job": "7", "step": "0", "nodes": ["n1", "n2"]}
    meta |= {"start": incident.START, "end": incident.START + 300 * 10**9}
    shown = {}
    for held in (0.0, 6.0):
        place = tmp_path / f"{held}"
        place.mkdir()
        writing.write_table(place, "host", rows | {"cpu_throttled": [held] * 30 + [0.0] * 30})
        writing.write_meta(place, meta)
        page = html.render(reading.open_step(place)).decode()
        shown[held] = {one["title"]: one for one in data_of(page)["plots"]["lines"]["panels"]}
    assert set(shown[0.0]) == {"Cores in use", "Tasks waited: I/O (% of time)"}
    panel = shown[6.0]["Cores that a quota held up"]
    assert panel["unit"] == "" and set(panel["mean"]) == {3.0}
    waited = [one["Tasks waited: I/O (% of time)"]["mean"] for one in shown.values()]
    assert [set(one) for one in waited] == [{25.0}, {25.0}]


def test_a_loss_that_is_no_number_is_on_the_axis(tmp_path: Path) -> None:
    """It is no value of the line; it is what matters most of it."""
    incident.write(tmp_path)
    times = incident.START + np.arange(60, 1260, 60) * 10**9
    values = [float("nan") if i == 11 else 2.0 for i in range(20)]
    writing.write_table(tmp_path, "marks", {"time": times, "name": ["loss"] * 20, "value": values})
    page = html.render(reading.open_step(tmp_path)).decode()
    lanes = {lane["name"]: lane["items"] for lane in data_of(page)["plots"]["track"]["lanes"]}
    assert lanes["marks"] == [[720, 720, "error", "loss is not a number"]]
    assert {2.0, None} == set(panel_of(page, "loss")["mean"])


def test_what_is_read_seldom_is_a_line(tmp_path: Path) -> None:
    """At ten samples a second clocks and temperatures are read once: they were dashes. Small values are no zeros."""
    ends = incident.START + np.arange(1, 601) * 10**8
    often = np.full(600, np.nan)
    often[9::10] = 61.0
    rows = {"time": ends, "span": [0.1] * 600, "node": ["n1"] * 600, "gpu": [0] * 600, "utilisation": [0.5] * 600}
    writing.write_table(tmp_path, "gpu", rows | {"temperature": often})
    writing.write_table(
        tmp_path, "host", {"time": ends, "span": [0.1] * 600, "node": ["n1"] * 600, "memory": [4e5] * 600}
    )
    meta = {"job": "7", "step": "0", "start": incident.START, "end": incident.START + 60 * 10**9, "nodes": ["n1"]}
    writing.write_meta(tmp_path, meta)
    page = html.render(reading.open_step(tmp_path), dataclasses.replace(incident.JOB, now=FAILED)).decode()
    assert set(panel_of(page, "Temperature")["mean"]) == {61.0}
    assert set(panel_of(page, "Memory (GB)")["mean"]) == {0.0004}
    assert "state-bad" in page.partition("</style>")[2] and "exit by signal 9" in page


def test_secrets_are_names(tmp_path: Path) -> None:
    """Whoever wrote meta.json should have left them out; the page does not trust that."""
    incident.write(tmp_path)
    meta = json.loads((tmp_path / "meta.json").read_text())
    meta["environment"]["variables"] = {"WANDB_API_KEY": "abcdef123456", "NCCL_DEBUG": "WARN"}
    writing.write_meta(tmp_path, meta)
    page = html.render(reading.open_step(tmp_path)).decode()
    assert "abcdef123456" not in page and "WANDB_API_KEY" in page and "WARN" in page


def test_saturation_of_means_is_at_least(step: reading.StepData) -> None:
    """A bin of several samples hides what they were; one of a single sample does not."""
    grid = grids.of(step, saturation.NAMES, ())
    exact = saturation.of(grid)
    assert exact is not None and not exact.is_least and exact.score.coverage == pytest.approx(0.992, abs=0.002)
    assert exact.score.value == pytest.approx(float(np.nanmean(exact.lines["s"])), abs=0.002)
    shares = [part for _, _, part in series.shares_of(exact.parts, exact.score)]
    assert sum(shares) == pytest.approx(1)
    coarse = reading.StepData(step.directory, step.meta | {"interval": 1.0}, step._pieces)
    found = saturation.of(dataclasses.replace(grid, step=coarse))
    assert found is not None and found.is_least


def test_samples_are_spread_over_bins() -> None:
    """Each bin has the mean over what samples cover of it; a gap stays one; no second counts twice."""
    edges = np.array([0.0, 10, 20, 30, 40])
    begin, end = np.array([0.0, 15, 24]), np.array([15.0, 25, 30])
    found = grids.means(begin, end, np.array([4.0, 8.0, 2.0]), edges)
    assert found[:3] == pytest.approx([4, (5 * 4 + 5 * 8) / 10, (5 * 8 + 5 * 2) / 10]) and np.isnan(found[3])
    assert np.isnan(grids.means(begin, end, np.full(3, np.nan), edges)).all()


def test_findings_that_overlap_have_lanes_of_their_own() -> None:
    """Up to four; what comes after lies with the others of the last."""
    items = [track.Item(0, 10, "finding", str(i)) for i in range(6)] + [track.Item(10, 20, "finding", "6")]
    lanes = list(track._rows(items))
    assert [(name, [item.text for item in lane]) for name, lane, _ in lanes] == [
        ("findings", ["0", "6"]), ("", ["1"]), ("", ["2"]), ("", ["3", "4", "5"]),
    ]  # fmt: skip


def test_percentiles_are_those_of_numpy() -> None:
    """With gaps, and where nothing is known."""
    values = np.random.default_rng(1).normal(size=(40, 30))
    values[values > 1] = np.nan
    values[:, 3], values[1:, 4] = np.nan, np.nan
    expected = np.full((2, 30), np.nan)
    known = [i for i in range(30) if i != 3]
    expected[:, known] = np.nanpercentile(values[:, known], [5, 95], axis=0)
    assert series.percentiles(values, (5, 95)) == pytest.approx(expected, nan_ok=True)


def test_quantities_that_the_page_draws_are_of_the_layout() -> None:
    """A name with a typing error would be a line that is never there."""
    from piolet.api import GPU_QUANTITIES
    from piolet.observe.layout import TABLES

    assert set(panels.GPU_NAMES) | set(saturation.NAMES) <= {quantity.name for quantity in GPU_QUANTITIES}
    assert set(panels.HOST_NAMES) <= {column.name for column in TABLES["host"]}
