"""Every model's row has a source and a date, and is found by the name that NVML has."""

from __future__ import annotations

import pytest
from piolet.score import peaks
from piolet.score.peaks import peaks_of


@pytest.mark.parametrize(
    ("name", "nvlink", "pcie", "c2c"),
    [
        ("NVIDIA GB200", 900, 63, 450),
        ("NVIDIA GB300", 900, 121, 450),
        ("NVIDIA B200", 900, 63, 0),
        ("NVIDIA B300 SXM6 AC", 900, 121, 0),
        ("NVIDIA GH200 120GB", 450, 63, 450),
        ("NVIDIA H20", 450, 63, 0),
        ("NVIDIA H200", 450, 63, 0),
        ("NVIDIA H200 NVL", 450, 63, 0),
        ("NVIDIA H100 NVL", 300, 63, 0),
        ("NVIDIA H800", 200, 63, 0),
        ("NVIDIA H800 PCIe", 200, 63, 0),
        ("NVIDIA A800-SXM4-80GB", 200, 31.5, 0),
        ("NVIDIA A40", 56.25, 31.5, 0),
        ("NVIDIA A30", 100, 31.5, 0),
        ("NVIDIA L4", 0, 31.5, 0),
        ("NVIDIA L40S", 0, 31.5, 0),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", 0, 63, 0),
        ("NVIDIA A100-SXM4-80GB", 300, 31.5, 0),
        ("Tesla V100-SXM2-32GB", 150, 15.75, 0),
    ],
)
def test_known_models(name: str, nvlink: float, pcie: float, c2c: float) -> None:
    found = peaks_of(name)
    assert (found.nvlink, found.pcie, found.c2c) == pytest.approx((nvlink * 1e9, pcie * 1e9, c2c * 1e9))
    assert "read in November 2026" in found.source


@pytest.mark.parametrize(
    ("name", "teraflops", "multiprocessors", "operations"),
    [
        ("Tesla V100-SXM2-32GB", 125, 80, 1024),
        ("NVIDIA A100-SXM4-80GB", 312, 108, 2048),
        ("NVIDIA A800-SXM4-80GB", 312, 108, 2048),
        ("NVIDIA A30", 165, 56, 2048),
        ("NVIDIA H100 80GB HBM3", 989.4, 132, 4096),
        ("NVIDIA H800", 989.4, 132, 4096),
        ("NVIDIA H100 PCIe", 756.5, 114, 4096),
        ("NVIDIA H100 NVL", 835.5, 132, 4096),
        ("NVIDIA H200 NVL", 835.5, 132, 4096),
        ("NVIDIA GH200 480GB", 990, 132, 4096),
        ("NVIDIA B200", 2250, 148, 8192),
        ("NVIDIA L4", 121, 58, 1024),
        ("NVIDIA L40S", 362, 142, 1024),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 500, 188, 1024),
    ],
)
def test_the_sheets_clock_is_its_rate(name: str, teraflops: float, multiprocessors: int, operations: int) -> None:
    """The dense 16-bit rate over what the multiprocessors do in a cycle."""
    clock = teraflops * 1e6 / (multiprocessors * operations)
    assert peaks_of(name).clock_sheet == pytest.approx(clock, rel=0.003)


@pytest.mark.parametrize(
    "name", ["NVIDIA GB200", "NVIDIA GB300", "NVIDIA B300 SXM6 AC", "NVIDIA H20", "NVIDIA H800 PCIe"]
)
def test_what_no_source_tells_for_certain_is_no_estimate(name: str) -> None:
    """Of their links something is known, of the tensor rate over the clock not."""
    assert peaks_of(name).is_known and peaks_of(name).clock_sheet == 0


def test_the_machines_pcie_counts() -> None:
    """A board of generation 6 in a host of generation 5; of an unknown model it says nothing of the other links."""
    assert peaks_of("NVIDIA B300 SXM6 AC", None, 63e9).pcie == 63e9
    assert not peaks_of("NVIDIA X1", None, 63e9).is_known


@pytest.mark.parametrize("name", ["NVIDIA H21", "NVIDIA L400", "NVIDIA XB200", "unknown GPU", "NVIDIA A3000"])
def test_an_unknown_model_is_not_judged(name: str) -> None:
    """A name that only begins like a known one is none."""
    found = peaks_of(name)
    assert not found.is_known and "not judged" in found.source and not found.clock_sheet


@pytest.mark.parametrize("missing", ["sheet", "read", "part"])
def test_a_row_without_source_or_date_is_none(missing: str) -> None:
    row = {"part": "X1", "nvlink": 1, "pcie": 1, "c2c": 0, "clock_sheet": 0, "sheet": "a sheet", "read": "May 2026"}
    with pytest.raises(ValueError, match="no source or no date"):
        peaks._Row(**row | {missing: " " if missing != "part" else ""})  # type: ignore[arg-type]
