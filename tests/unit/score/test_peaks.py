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
    assert "data sheet" in found.source or "product brief" in found.source
    assert "read in November 2026" in found.source


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
