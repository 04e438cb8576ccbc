"""`python -m tools.pictures`: makes the pictures of docs/observe.md anew, of the page that `make demo-observe` left."""

from __future__ import annotations

import sys

from piolet.observe import reading
from piolet.observe.page import track

from tools import browser, demo_observe
from tools.cluster.layout import REPOSITORY

TARGET = REPOSITORY / "docs" / "pictures"
_ALL = "const of = name => plots.find(plot => plot.panel && plot.panel.title.startsWith(name));"
# Into the slow time, with the pointer on a line.
_ZOOMED = """{
document.querySelectorAll('[data-from]')[NUMBER].click();
for (const name of ['#why', '#findings', '#heat', '#waterfall', 'header', '.command', '.warn', '.hero', '.hero + p',
  '#lines .soft']) document.querySelector(name)?.remove();
const titles = /^(GPU utilisation|Cores that a quota|Tasks waited|An operation of .scratch|Data of .scratch|step)/;
for (const plot of [...plots]) {
  if (plot.panel && !titles.test(plot.panel.title)) plot.canvas.remove();
  if (!plot.canvas.isConnected) plots.splice(plots.indexOf(plot), 1);
}
scrollTo(0, 0); paint();
const took = of('An operation'), box = took.canvas.getBoundingClientRect();
const at = took.place((view.span[0] + view.span[1]) / 2);
took.tell(at, 40, box.left + took.left + at, box.top + 20);
}"""
_HEAT = """{
document.querySelector('[data-choice=map1]').click();
const heat = plots.find(plot => plot.rows);
for (const part of document.querySelectorAll('main > :not(#heat), header, .command, .warn')) part.remove();
}"""


def main() -> int:
    """Make them; what detectors find is on them."""
    program = browser.chromium()
    if program is None:
        print("chromium is not installed", file=sys.stderr)
        return 1
    page = (demo_observe.ROOM / "page.html").read_text()
    found = track.rows_of(reading.open_step(demo_observe.ROOM / "step").table("findings"))
    surest = sorted(found, key=lambda row: -(row["confidence"] or 0.0))  # as on the page
    number = [row["subject"] for row in surest].index(demo_observe.DATA)
    TARGET.mkdir(exist_ok=True)
    for name, size, theme, script in (
        ("observe-head", (1100, 720), "light", ""),
        ("observe-slow", (1100, 860), "light", _ALL + _ZOOMED.replace("NUMBER", str(number))),
        ("observe-heat", (1100, 480), "light", _HEAT),
        ("observe-narrow", (390, 1200), "dark", ""),
    ):
        browser.picture(program, page, TARGET / f"{name}.png", size, theme, script)
    for path in sorted(TARGET.glob("observe-*.png")):
        print(f"{path.relative_to(REPOSITORY)}: {path.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
