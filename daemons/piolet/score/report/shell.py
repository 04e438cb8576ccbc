"""What every page of ours is made of: one HTML file that works offline, and asks nobody for anything.

The page allows its own style sheet and scripts by their digests, and forbids itself to load anything else. Whatever
came from a user or a node becomes text by `escaped`; a script finds data as JSON, which `data` writes so that no text
ends the element that it is in. Scripts are files of packages, put together as one.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Any

from piolet.score.report import series

TEXT_MOST = 200  # characters of a name in what is drawn
_PACKAGE = "piolet.score.report"
STYLE, PLOTS, START = (_PACKAGE, "page.css"), (_PACKAGE, "plots.js"), (_PACKAGE, "start.js")
STACK, HEAT = (_PACKAGE, "stack.js"), (_PACKAGE, "heat.js")
# What takes away the pictures for who has no script, before the page is laid out the first time; and brings them back
# where the other scripts fail before all is drawn.
_EARLY = (
    "document.documentElement.classList.add('live');addEventListener('error',()=>"
    "performance.getEntriesByName('heat').length||document.documentElement.classList.remove('live'));"
)
# Characters that turn the direction of what stands behind them, or end a line: a name with them looks like another.
_TURNING = (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C, 0x2028, 0x2029)
_CONTROL = (*range(9), 11, 12, *range(14, 32), 127, *range(0x80, 0xA0))
_PLAIN = dict.fromkeys((*_TURNING, *_CONTROL), "\ufffd")


def document(
    title: str, body: Iterable[str], blocks: dict[str, str], scripts: Sequence[tuple[str, str]], more_style: str = ""
) -> str:
    """Return a page.

    blocks     JSON by the id of its element, as `data` returns it; the scripts run behind all of them
    scripts    package and name of each file, in order
    """
    style = "".join(read(*STYLE)) + more_style
    script = "\n".join(("'use strict';", *(read(*name) for name in scripts)))
    allowed = f"'{_digest(script)}' '{_digest(_EARLY)}'"
    policy = f"default-src 'none'; style-src '{_digest(style)}'; script-src {allowed}; img-src data:"
    parts = [
        "<!doctype html><html lang=en><head><meta charset=utf-8>",
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name=viewport content="width=device-width, initial-scale=1">',
        f"<title>{escaped(title)}</title><style>{style}</style><script>{_EARLY}</script></head><body>",
        *body,
        *(f"<script type=application/json id={name}>{text}</script>" for name, text in blocks.items()),
        f"<div id=tip role=status></div><script>{script}</script></body></html>\n",
    ]
    return "\n".join(part for part in parts if part)


def read(package: str, name: str) -> str:
    """Return a file of a package."""
    return resources.files(package).joinpath(name).read_text("utf-8")


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def plain(text: object) -> str:
    """Return text without what would turn its direction or control a terminal."""
    return str(text).encode("utf-8", "replace").decode().translate(_PLAIN)


def escaped(text: object) -> str:
    """Return text as HTML, for elements and for attributes in quotes."""
    return html.escape(plain(text))


def data(content: Any) -> str:
    """Return plain values as JSON for a script element. Raises ValueError: a number is not finite."""
    return json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def section(heading: str, *parts: str, note: str = "", name: str = "") -> str:
    """Return a section of parts that are HTML; '' if there are none. `note` is text."""
    inside = "".join(parts)
    if not inside:
        return ""
    said = f"<p class=soft>{escaped(note)}</p>" if note else ""
    called = f" id={name}" if name else ""
    return f"<section{called}><h2>{escaped(heading)}</h2>{said}{inside}</section>"


def definitions(facts: Iterable[tuple[str, object]]) -> str:
    """Return a list of names and texts, empty ones left out; '' if all are."""
    rows = "".join(
        f"<dt>{escaped(name)}</dt><dd>{escaped(text)}</dd>" for name, text in facts if text not in ("", None)
    )
    return f"<dl>{rows}</dl>" if rows else ""


def table(
    head: Iterable[str], rows: Iterable[Iterable[tuple[str, object]]], sort: bool = False, words: bool = False
) -> str:
    """Return a table; a cell is its text and the value that it is sorted by. `words`: of texts more than of numbers."""
    names = [escaped(name) for name in head]
    # Where a row is too wide its cells stand below each other, each with its name.
    named = [f' data-name="{name}"' if words and name else "" for name in names]
    lines = (
        "".join(
            f'<td data-value="{escaped(v)}"{name}>{escaped(text)}</td>'
            for name, (text, v) in zip(named, row, strict=True)
        )
        for row in rows
    )
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    heads = "".join(f"<th scope=col>{name}</th>" for name in names)
    classes = " ".join(name for name, wanted in (("sort", sort), ("words", words)) if wanted)
    kind = f' class="{classes}"' if classes else ""
    inside = f"<table{kind}><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"
    return f"<div class=scroll tabindex=0>{inside}</div>"


def cards(entries: Iterable[tuple[str, ...]]) -> str:
    """Return figures with what they are, and, smaller, what else is to be said of them."""
    inside = (
        f"<div><b>{escaped(value)}</b> {' '.join(f'<span>{escaped(text)}</span>' for text in texts if text)}</div>"
        for value, *texts in entries
    )
    return f"<div class=cards>{''.join(inside)}</div>"


def bar(parts: Iterable[tuple[str, str, float]]) -> str:
    """Return a bar of shares that add up to 1: name, colour, share."""
    done, rects, said = 0.0, "", []
    for name, colour, part in parts:
        rects += f'<rect x="{100 * done:.2f}%" width="{100 * part:.2f}%" height="100%" fill="{fill(colour)}"/>'
        done += part
        said.append(f"{name} {100 * part:.0f} %")
    return f'<svg class=bar role=img aria-label="where the time went: {escaped(", ".join(said))}">{rects}</svg>'


def fill(colour: str) -> str:
    """Return a colour as the page has it, light and dark."""
    return {dict(series.LOST)["idle"]: "var(--idle)", series.NO_DATA: "var(--paper)"}.get(colour, colour)


def key(entries: Iterable[tuple[str, str, str]]) -> str:
    """Return what colours mean: name, colour, text."""
    spans = (
        f'<span><svg viewBox="0 0 1 1" aria-hidden=true><rect width="1" height="1" fill="{fill(colour)}"/></svg>'
        f"{escaped(text)}</span>"
        for _, colour, text in entries
    )
    return f"<p class=key>{''.join(spans)}</p>"


def plots(name: str, kind: str = "") -> str:
    """Return the place where the script draws the plots of a name."""
    return f'<div class="plots{kind}" data-plot={name}></div>'


def heat_tools(both: bool, more: str = "") -> str:
    """Return the buttons of a heat map; with `both` there is a choice of the worst and the mean of a row."""
    choice = (
        "<button type=button data-heat=worst aria-pressed=true>worst</button>"
        "<button type=button data-heat=mean aria-pressed=false>mean</button>"
    )
    return tools((choice if both else "") + more)


def tools(more: str = "") -> str:
    """Return the buttons of what can be zoomed."""
    hint = "<span class=soft>drag to zoom, double click for all; with keys: arrows, + and -, Escape</span>"
    return f"<div class=tools>{more}<button type=button class=reset>whole time</button>{hint}</div>"
