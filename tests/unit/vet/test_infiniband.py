"""Errors of InfiniBand ports are judged by their rate: since the boot, and at the moment. The trees are simulated."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
from piolet.api import FAIL, PASS, Context
from piolet.vet.evals import infiniband

DATA = Path(__file__).resolve().parents[2] / "data" / "vet"


def context(root: str = "") -> Context:
    return Context("n1", time.monotonic() + 10, ("n1",), os.getuid(), root=root)


def counters(tmp_path: Path, up_s: float, **counts: int) -> Path:
    """Return the counters of a port of 400 Gbit/s, on a node that is up for so long."""
    shutil.copytree(DATA / "ib-good/sys", tmp_path / "sys")
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/uptime").write_text(f"{up_s} 1.0\n")
    where = tmp_path / "sys/class/infiniband/mlx5_0/ports/1/counters"
    for name, count in counts.items():
        (where / name).write_text(f"{count}\n")
    return where


@pytest.mark.parametrize(
    ("hours", "counts", "reason"),
    [
        (240, {"symbol_error": 1, "VL15_dropped": 3}, ""),
        (0.1, {"symbol_error": 1, "VL15_dropped": 3, "link_downed": 1}, ""),  # so short a time is no time
        (240, {"symbol_error": 300_000}, ""),
        (2, {"symbol_error": 300_000}, "counts symbol_error: 300000 in 2 hours, 1440 an hour are allowed"),
        (240, {"VL15_dropped": 20_000}, "counts VL15_dropped: 20000 in 240 hours, 50 an hour are allowed"),
        (240, {"link_downed": 11}, ""),
        (10, {"link_downed": 42}, "counts link_downed: 42 in 10 hours, 1 an hour are allowed"),
    ],
)
def test_infiniband_counts_by_the_hour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hours: float, counts: dict[str, int], reason: str
) -> None:
    monkeypatch.setattr(infiniband, "_LOOK_S", 0.01)
    counters(tmp_path, hours * 3600, **counts)
    verdict = infiniband.Infiniband().check(context(str(tmp_path)))
    assert (verdict.outcome == FAIL, verdict.reason) == (bool(reason), f"mlx5_0 port 1 {reason}" if reason else "")
    assert verdict.details["counted"]["mlx5_0 port 1"] == counts


def test_infiniband_errors_that_come_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean since the boot is good, and the link is not."""
    where = counters(tmp_path, 1e7, symbol_error=10)
    sleep = time.sleep

    def while_it_looks(seconds: float) -> None:
        (where / "symbol_error").write_text(f"{now}\n")
        sleep(0.01)

    monkeypatch.setattr(time, "sleep", while_it_looks)
    now = 12
    assert infiniband.Infiniband().check(context(str(tmp_path))).outcome == PASS
    now = 500
    verdict = infiniband.Infiniband().check(context(str(tmp_path)))
    assert verdict.outcome == FAIL
    assert "mlx5_0 port 1 counts symbol_error: 488 in 0.0 s" in verdict.reason


def test_limits_of_counters_name_their_source() -> None:
    with pytest.raises(ValueError, match="the limit of symbol_error names no source"):
        infiniband.Counter("symbol_error", 1.0, 0.0, True, "", "2026-11-29")
    assert all(counter.limit(400) > 0 for counter in infiniband.COUNTERS)
