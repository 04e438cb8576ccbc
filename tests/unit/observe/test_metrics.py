"""The metrics of every step: sums of frames, who is answered, and that a real Prometheus takes them."""

from __future__ import annotations

import socket
import time
import urllib.error
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from piolet.base.errors import ConfigError, PioletError
from piolet.observe.metrics import ENDED_S, Figures, serve

from tests.support.prometheus import ask, check_text, get, scraping
from tests.support.registry import free_port

LIMIT_S = 60.0


class Kept:
    """A spool that keeps what it is given, or takes nothing."""

    def __init__(self) -> None:
        self.given: list[str] = []
        self.full = False

    def put(self, kind: str, source: str, **_: Any) -> bool:
        self.given.append(kind)
        return not self.full


def frame(span: float = 10.0, **tables: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a frame's body, as observe/journal.py has it."""
    body: dict[str, Any] = {"up": 1.0, "span": span}
    for name, rows in tables.items():
        columns = list(dict.fromkeys(column for row in rows for column in row))
        body[name] = {"columns": columns, "rows": [[row.get(column) for column in columns] for row in rows]}
    return body


GPU = {"gpu": 0, "uuid": "GPU-a", "utilisation": 0.5, "power": 400.0, "energy": 1000.0}


@pytest.fixture
def clock() -> Iterator[list[float]]:
    """What time it is."""
    yield [0.0]


@pytest.fixture
def figures(clock: list[float]) -> Figures:
    """Sums of no frames yet."""
    return Figures(Kept(), "nid001", lambda: clock[0])


def told(figures: Figures) -> dict[str, float]:
    """Return the metrics, by name and the labels that tell rows apart."""
    found = {}
    for family in figures.collect():
        for sample in family.samples:
            labels = {name: text for name, text in sample.labels.items() if name not in ("node", "uid", "simulated")}
            found[" ".join([sample.name, *labels.values()])] = sample.value
    return found


def test_frames_add_up(figures: Figures) -> None:
    """Shares and rates are integrals, states are the latest value; what is missing adds nothing."""
    figures.put("observe.frame", "root", job=7, step="0", uid=1000, body=frame(
        host=[{"cpu": 2.0, "memory": 100.0, "out_of_memory": 0, "retransmits": 3.0}], gpu=[GPU],
        io=[{"mount": "/scratch", "kind": "lustre", "scope": "step", "read": 5.0, "wait": 0.25}],
        net=[{"port": "hsn0", "kind": "cxi", "rate": 25e9, "rx": 10.0}],
    ))  # fmt: skip
    figures.put("observe.frame", "root", job=7, step="0", uid=1000, body=frame(
        20.0, host=[{"cpu": None, "memory": 50.0, "out_of_memory": 2, "processes": 4}],
        gpu=[GPU | {"utilisation": 1.0, "energy": 7000.0, "span": 19.0}],
    ))  # fmt: skip
    got = told(figures)
    assert got["piolet_observe_host_cpu_seconds_total 7 0"] == 20
    assert got["piolet_observe_host_sampled_seconds_total 7 0"] == 30
    assert got["piolet_observe_host_memory_bytes 7 0"] == 50
    assert got["piolet_observe_host_out_of_memory_total 7 0"] == pytest.approx(2)
    assert got["piolet_observe_host_retransmits_total 7 0"] == 30
    assert got["piolet_observe_host_processes 7 0"] == 4
    assert got["piolet_observe_gpu_utilisation_seconds_total 7 0 0 GPU-a"] == 24
    assert got["piolet_observe_gpu_energy_joules_total 7 0 0 GPU-a"] == 6000
    assert got["piolet_observe_gpu_power_watts 7 0 0 GPU-a"] == 400
    assert got["piolet_observe_io_read_bytes_total 7 0 /scratch lustre step"] == 50
    assert got["piolet_observe_io_wait_seconds 7 0 /scratch lustre step"] == 0.25
    assert got["piolet_observe_net_rx_bytes_total 7 0 hsn0 cxi"] == 100
    assert got["piolet_observe_net_rate 7 0 hsn0 cxi"] == 25e9
    assert got["piolet_observe_steps"] == 1 and got["piolet_observe_frames_total"] == 2


def test_a_step_that_ended_is_told_of_a_little_longer(figures: Figures, clock: list[float]) -> None:
    """And what is recorded of it again begins anew; a job without a number has its name."""
    for _ in range(2):
        figures.put("observe.frame", "root", job=7, step="0", uid=1000, body=frame(gpu=[GPU]))
    figures.put("observe.end", "root", job=7, step="0", uid=1000, body={"ended": 1.0})
    clock[0] = ENDED_S - 1
    assert told(figures)["piolet_observe_gpu_utilisation_seconds_total 7 0 0 GPU-a"] == 10
    assert told(figures)["piolet_observe_steps"] == 0
    clock[0] = ENDED_S + 1
    assert not any("gpu" in name for name in told(figures))
    figures.put("observe.frame", "root", step="0", uid=1000, body=frame(gpu=[GPU]) | {"sluid": "sABC"})
    assert told(figures)["piolet_observe_gpu_utilisation_seconds_total sABC 0 0 GPU-a"] == 5


def test_what_is_missing_and_what_was_not_taken(clock: list[float]) -> None:
    """Counts by source and reason, of bounded number; the spool's own word is passed on."""
    spool = Kept()
    figures = Figures(spool, "n", lambda: clock[0])
    assert figures.put("observe.frame", "root", job=7, step="0", uid=1, body=frame(
        quality=[{"source": "gpm", "reason": "blank", "values": 3}, {"source": "lustre", "reason": "hangs"}]
    ))  # fmt: skip
    spool.full = True
    assert not figures.put("observe.frame", "root", job=7, step="0", uid=1, body=frame(
        quality=[{"source": "x", "reason": str(n), "values": 1} for n in range(1000)]
    ))  # fmt: skip
    got = told(figures)
    assert got["piolet_observe_missing_values_total 7 0 gpm blank"] == 3
    assert got["piolet_observe_missing_values_total 7 0 lustre hangs"] == 0
    assert sum("missing_values" in name for name in got) == 64
    assert got["piolet_observe_dropped_frames_total"] == 1 and spool.given == ["observe.frame"] * 2
    assert figures.put("spool.lost", "root") is False and spool.given[-1] == "spool.lost"


def test_steps_without_end_do_not_fill_the_memory(figures: Figures, clock: list[float]) -> None:
    """Thousands of steps a minute: those that ended first are forgotten."""
    for job in range(3000):
        figures.put("observe.frame", "root", job=job, step="0", uid=1, body=frame(gpu=[GPU]))
        clock[0] += 0.001
        figures.put("observe.end", "root", job=job, step="0", uid=1, body={})
    names = [name for name in told(figures) if "sampled" in name]
    assert len(names) == 2048 and any(" 2999 0 " in name for name in names)


def test_only_who_has_the_token_is_answered(figures: Figures) -> None:
    """Not without one, not with another; and nobody from the network."""
    where = f"127.0.0.1:{free_port()}"
    stop = serve(figures, where, "of the site")
    try:
        assert "piolet_observe_steps 0" in get(f"http://{where}/metrics", "of the site")
        for wrong in ("", "of the sit", "of the site2", "\xff"):
            with pytest.raises(urllib.error.HTTPError, match="401"):
                get(f"http://{where}/metrics", wrong)
        with pytest.raises(PioletError, match="cannot serve metrics on"):
            serve(figures, where)
    finally:
        stop()
    with pytest.raises(ConfigError, match="loopback"):
        serve(figures, "0.0.0.0:9418")


def test_who_says_nothing_takes_no_threads(figures: Figures) -> None:
    """Hundreds of connections that ask for nothing: a few are served, the rest is closed at once."""
    import threading

    where = f"127.0.0.1:{free_port()}"
    stop = serve(figures, where)
    idle = []
    try:
        before = threading.active_count()
        for _ in range(100):
            idle.append(socket.create_connection(("127.0.0.1", int(where.partition(":")[2])), 5))
        deadline = time.monotonic() + LIMIT_S
        while sum(_is_closed(one) for one in idle) < 92:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert threading.active_count() - before <= 8
    finally:
        for one in idle:
            one.close()
        stop()


def _is_closed(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def test_a_prometheus_takes_them(tmp_path: Path) -> None:
    """With the token; the rate of an integral is the mean. Its linter has nothing to say of the text."""
    figures = Figures(Kept(), "nid001")
    where = f"127.0.0.1:{free_port()}"
    stop = serve(figures, where, "secret")
    mean = (
        "rate(piolet_observe_gpu_utilisation_seconds_total[30s]) / rate(piolet_observe_gpu_sampled_seconds_total[30s])"
    )
    found: list[dict[str, Any]] = []
    try:
        with scraping(where, tmp_path, "secret") as server:
            deadline = time.monotonic() + LIMIT_S
            while not found or found[0]["value"][1] == "NaN":
                assert time.monotonic() < deadline, "Prometheus has no rate"
                body = frame(1.0, gpu=[GPU], host=[{"cpu": 1.0}])
                figures.put("observe.frame", "root", job=7, step="0", uid=1000, body=body)
                time.sleep(0.3)
                found = ask(server, mean)
        assert float(found[0]["value"][1]) == pytest.approx(0.5)
        labels = {name: found[0]["metric"][name] for name in ("node", "job", "step", "uid", "gpu", "uuid")}
        assert labels == {"node": "nid001", "job": "7", "step": "0", "uid": "1000", "gpu": "0", "uuid": "GPU-a"}
        check_text(get(f"http://{where}/metrics", "secret"))
    finally:
        stop()
