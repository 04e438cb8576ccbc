"""Headless Chromium: what it makes of a page, and when it shows it."""

from __future__ import annotations

import base64
import hashlib
import html
import http.server
import json
import re
import shutil
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

COMMON = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--enable-logging=stderr")


def chromium() -> str | None:
    """Return where the browser is; None: it is not installed."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def load(program: str, file: Path, profile: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Load a page, and return what the browser prints: its document with --dump-dom, what the console has on stderr."""
    return subprocess.run(
        [program, *COMMON, f"--user-data-dir={profile}", *flags, f"file://{file}"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip


def with_script(page: str, script: str, themed: str = "") -> str:
    """Return a page that lets a script of a test run behind its own, and no other."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = page.replace("script-src '", f"script-src 'sha256-{digest}' '", 1)
    assert allowed != page and page.count("</body>") == 1
    if themed:
        allowed = allowed.replace("<html lang=en>", f"<html lang=en data-theme={themed}>", 1)
    return allowed.replace("</body>", f"<script>{script}</script></body>")


# A window of headless Chromium is at least 500 pixels wide, so a page is shown in a frame, which can be narrower.
_FRAME = """<!doctype html><style>body {{ margin: 0 }} iframe {{ border: 0; display: block }}</style>
<iframe src="{name}" width={width} height={height}></iframe>
<script>addEventListener('message', event => {{ document.title = event.data; }});</script>"""


def framed(page: str, room: Path, width: int, height: int) -> Path:
    """Write a page, and another one that shows it in a frame of this size; return the path of that."""
    (room / "page.html").write_text(page)
    frame = room / "frame.html"
    frame.write_text(_FRAME.format(name="page.html", width=width, height=height))
    return frame


def found(program: str, page: str, script: str, room: Path, width: int = 1400, themed: str = "") -> str:
    """Return what a script that sets `document.title = 'found ' + …` found; no word in the console is right."""
    telling = f"{script}\n;parent.postMessage(document.title, '*');"
    frame = framed(with_script(page, telling, themed), room, width, 900)
    done = load(program, frame, room / "profile", "--window-size=1500,900", "--virtual-time-budget=4000", "--dump-dom")
    assert "CONSOLE" not in done.stderr, done.stderr
    told: list[str] = re.findall("<title>found (.*?)</title>", done.stdout, re.DOTALL)
    assert len(told) == 1, done.stdout[-2000:]
    return str(html.unescape(told[0]))


def picture(
    program: str, page: str, target: Path, size: tuple[int, int], themed: str = "light", script: str = ""
) -> None:
    """Make a PNG of a page at a width and height in pixels, after a script if there is one."""
    width, height = size
    with tempfile.TemporaryDirectory() as room:
        frame = framed(with_script(page, script or "0", themed), Path(room), width, height)
        shot = Path(room, "shot.png")
        flags = (f"--window-size={max(500, width)},{height}", "--hide-scrollbars", "--virtual-time-budget=2000")
        load(program, frame, Path(room, "profile"), *flags, f"--screenshot={shot}")
        with Image.open(shot) as whole:
            whole.crop((0, 0, width, height)).convert("P", palette=Image.Palette.ADAPTIVE).save(target, optimize=True)


@dataclass(frozen=True)
class Shown:
    """When a page was there, in seconds since the browser began to load it: the first text, all lines, the heat map.

    process    since the browser was started
    """

    first: float
    lines: float
    heat: float
    process: float


_PROBE = """{
const told = name => performance.getEntriesByName(name)[0];
const look = () => {
  const first = told('first-contentful-paint');
  if (!first || !told('heat')) return requestAnimationFrame(look);
  requestAnimationFrame(() => setTimeout(() => navigator.sendBeacon('http://127.0.0.1:PORT/', JSON.stringify(
    [first.startTime, Math.max(first.startTime, told('lines').startTime), performance.now()]))));
};
look();
}"""


def shown(program: str, page: str, window: str = "1400,900") -> Shown:
    """Load a page in a browser that has not run before, with a profile of its own, and return when it was there."""
    told: list[list[float]] = []
    heard = threading.Event()

    class Ear(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()
            heard.set()

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with http.server.HTTPServer(("127.0.0.1", 0), Ear) as server, tempfile.TemporaryDirectory() as room:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        probe = _PROBE.replace("PORT", str(server.server_port))
        file = Path(room, "page.html")
        policy = f"default-src 'none'; connect-src http://127.0.0.1:{server.server_port}"
        allowed = page.replace("default-src 'none'", policy, 1)
        file.write_text(with_script(allowed, probe))
        began = time.monotonic()
        flags = [*COMMON, f"--user-data-dir={room}/profile", f"--window-size={window}", "--remote-debugging-port=0"]
        with subprocess.Popen([program, *flags, f"file://{file}"], stderr=subprocess.PIPE, text=True) as running:
            try:
                is_there = heard.wait(60)
                process = time.monotonic() - began
            finally:
                running.terminate()
                said = running.communicate(timeout=30)[1]
        server.shutdown()
    if not is_there:
        raise AssertionError(f"the page was not there within a minute: {said[-2000:]}")
    first, lines, heat = (value / 1000 for value in told[0])
    return Shown(first, lines, heat, process)
