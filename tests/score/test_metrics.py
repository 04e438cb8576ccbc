"""The metrics of running steps: what they add up to, that a real Prometheus takes them, and who may listen where."""

from __future__ import annotations

import math
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from piolet.base.errors import ConfigError, PioletError
from piolet.samples.metrics import serve
from piolet.samples.sampler import DeviceTotals, Sampler
from piolet.samples.settings import address_of

from tests.score import simulation
from tests.support.prometheus import ask, check_text, get, scraping
from tests.support.registry import free_port

LIMIT_S = 60.0
SCRIPT = "gpu\nload matmul 1000\ngpu\nload idle 1000\nblank 10 3\n"
SAMPLER = """
import os, sys
from piolet.api import Target
from piolet.samples.choose import choose
from piolet.samples.metrics import serve
from piolet.samples.sampler import SampledStep, Sampler, Sink
collectors, why_not = choose(Target(period=0.1), "gpm")
sampler = Sampler(totals=True)
stop = serve(sampler, "nid001", sys.argv[1])
sink = Sink(os.open("/dev/null", os.O_WRONLY))
session = sampler.add(SampledStep("42", "0", "nid001", 1000), collectors, 0.1, sink, why_not)
print("ready", flush=True)
sampler.run_until(lambda: os.getppid() == 1)
"""


@pytest.fixture
def address(libraries: Path, tmp_path: Path) -> Iterator[str]:
    """A sampler with two scripted GPUs, and where its metrics are."""
    where = f"127.0.0.1:{free_port()}"
    (tmp_path / "script").write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, "-c", SAMPLER, where],
        env=simulation.environment(libraries, tmp_path / "script"),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        yield where
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def prometheus(address: str, tmp_path: Path) -> Iterator[str]:
    """A Prometheus that scrapes the sampler every second; its own address."""
    with scraping(address, tmp_path) as where:
        yield where


def test_a_prometheus_sees_the_step(prometheus: str) -> None:
    """The rate of an integral is the mean of the quantity, with the labels of the step."""
    mean = "rate(piolet_gpu_tensor_seconds_total[30s]) / rate(piolet_gpu_sampled_seconds_total[30s])"
    deadline = time.monotonic() + LIMIT_S
    while len(found := ask(prometheus, mean)) < 2 or found[0]["value"][1] == "NaN":
        assert time.monotonic() < deadline, "Prometheus has no rate"
        time.sleep(0.2)
    assert found[0]["metric"] == {
        "node": "nid001",
        "job": "42",
        "step": "0",
        "uid": "1000",
        "simulated": "scripted GPUs",
        "gpu": "0",
        "uuid": "GPU-00000000-0000-0000-0000-000000000000",
        "instance": found[0]["metric"]["instance"],
    }
    busy, idle = (float(sample["value"][1]) for sample in found)
    assert busy > 0.5 and idle == 0
    missing = ask(prometheus, 'piolet_step_missing_values_total{quantity="dram"}')
    assert missing and float(missing[0]["value"][1]) > 0


def test_the_text_is_as_prometheus_wants_it(address: str) -> None:
    """Asked of Prometheus' own linter."""
    deadline = time.monotonic() + LIMIT_S
    while "piolet_gpu_power_watts" not in (text := get(f"http://{address}/metrics")):
        assert time.monotonic() < deadline, text
        time.sleep(0.1)
    check_text(text)


def test_totals_are_integrals() -> None:
    """A missing value adds nothing, and is not a zero."""
    totals = DeviceTotals(3)
    totals.add(0.5, (1.0, math.nan, math.nan))
    totals.add(2.0, (0.25, 3.0, math.nan))
    totals.add(1.0, (math.nan, 1.0, math.nan))
    assert totals.span == 3.5
    assert totals.sums[:2] == [1.0, 7.0] and totals.latest[:2] == [0.25, 1.0]
    assert math.isnan(totals.sums[2]) and math.isnan(totals.latest[2])


@pytest.mark.parametrize(
    "text", ["0.0.0.0:9417", "10.1.2.3:9417", "node:9417", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:x", "[::]:9417", ""]
)
def test_only_the_loopback_interface(text: str) -> None:
    """Nobody in the network may read what jobs do."""
    with pytest.raises(ConfigError, match="loopback") as caught:
        address_of(text)
    assert caught.value.hint


def test_an_address_is_read() -> None:
    """Of both families."""
    assert address_of("127.0.0.1:9417") == ("127.0.0.1", 9417)
    assert address_of("[::1]:9417") == ("::1", 9417)


def test_a_port_that_is_taken_is_said(address: str) -> None:
    """In one sentence."""
    with pytest.raises(PioletError, match=f"cannot serve metrics on {address}: Address already in use"):
        serve(Sampler(), "nid001", address)


def test_without_a_step_there_still_is_an_answer() -> None:
    """Which says that there is none; and the thread ends."""
    where = f"127.0.0.1:{free_port()}"
    stop = serve(Sampler(), "nid001", where)
    try:
        assert "piolet_score_steps 0.0" in get(f"http://{where}/metrics")
    finally:
        stop()
    with pytest.raises(urllib.error.URLError):
        get(f"http://{where}/metrics")
