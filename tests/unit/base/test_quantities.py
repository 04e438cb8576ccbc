"""Numbers with units: which are read, and which are refused."""

from __future__ import annotations

import pytest
from piolet.base import quantities


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [("20 GB/s", "GB/s", 20.0), ("90.0", "GB/s", 90.0), ("1 GiB/s", "GB/s", 2**30 / 1e9), ("8 GB", "B", 8e9),
     ("2GiB", "B", 2.0**31), ("30s", "s", 30.0), ("5 min", "s", 300.0), ("250 ms", "s", 0.25), ("1h", "s", 3600.0),
     ("0.2", "0..1", 0.2), ("1e3", "B", 1000.0)],
)  # fmt: skip
def test_quantities(text: str, unit: str, value: float) -> None:
    assert quantities.parse(text, unit) == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "unit"),
    [("8 Gb", "B"), ("8 GB", "GB/s"), ("8 GB/s", "B"), ("x", ""), ("1e999", "B"), ("", "s"), ("3 s", "B")],
)
def test_what_is_no_quantity(text: str, unit: str) -> None:
    with pytest.raises(ValueError, match="number"):
        quantities.parse(text, unit)
