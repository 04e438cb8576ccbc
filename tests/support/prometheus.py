"""A Prometheus for tests: it scrapes an address every second, and answers queries."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.registry import free_port


@contextlib.contextmanager
def scraping(address: str, directory: Path, token: str = "") -> Iterator[str]:
    """Run a Prometheus that scrapes `address`; yield its own address. The test is skipped where there is none."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not installed")
    config = directory / "prometheus.yml"
    lines = ["scrape_configs:", "- job_name: piolet", "  honor_labels: true", "  scrape_interval: 1s"]
    if token:
        (directory / "token").write_text(f"{token}\n")
        lines += ["  authorization:", f"    credentials_file: {directory / 'token'}"]
    lines += ["  static_configs:", f"  - targets: ['{address}']"]
    config.write_text("".join(f"{line}\n" for line in lines))
    where = f"127.0.0.1:{free_port()}"
    words = [program, f"--config.file={config}", f"--storage.tsdb.path={directory / 'data'}"]
    with (directory / "log").open("w") as log:
        process = subprocess.Popen([*words, f"--web.listen-address={where}"], stdout=log, stderr=log)
    try:
        yield where
    finally:
        process.kill()
        process.wait()


def get(url: str, token: str = "") -> str:
    """Return what an address gives. Raises urllib.error.URLError."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    with urllib.request.urlopen(request, timeout=5) as answer:
        return str(answer.read().decode())


def ask(server: str, query: str) -> list[dict[str, Any]]:
    """Return the samples that a query of PromQL gives, none while the server does not answer."""
    try:
        answer = json.loads(get(f"http://{server}/api/v1/query?query={urllib.parse.quote(query)}"))
    except urllib.error.URLError:
        return []
    found: list[dict[str, Any]] = answer["data"]["result"]
    return found


def check_text(text: str) -> None:
    """Have Prometheus' own linter look at metrics; the test is skipped where there is none."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed")
    done = subprocess.run([program, "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
