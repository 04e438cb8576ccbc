"""One grammar for numbers with units: what a protocol takes an age takes, and what is of another kind is refused."""

from __future__ import annotations

import pytest
from piolet.base import units
from piolet.samples.request import period_of


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90min", 5400.0), ("5 min", 300.0), ("100ms", 0.1), ("1.5h", 5400.0), ("30d", 2592000.0), ("1w", 604800.0),
     (" 2 hours ", 7200.0), ("0s", 0.0), ("30", None), ("-1h", None), ("1e3s", None), ("8 GB", None), ("5 m", None),
     ("soon", None), ("", None), ("9999999999s", None), ("٣s", None)],
)  # fmt: skip
def test_times(text: str, seconds: float | None) -> None:
    assert units.seconds_of(text) == seconds
    if seconds is not None:
        assert units.parse(text, "s") == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "seconds"), [("100ms", 0.1), ("100 ms", 0.1), ("2min", 120.0), ("1", 1.0), ("1h", 3600)]
)
def test_intervals(text: str, seconds: float) -> None:
    assert period_of(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["99ms", "3601s", "-1s", "1 GB", "x", "nan", "inf"])
def test_what_is_no_interval(text: str) -> None:
    with pytest.raises(ValueError, match=text):
        period_of(text)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.9, "59 s"), (60, "1 min"), (7199, "1 h"), (86400 * 3.5, "3 d")]
)
def test_ages(seconds: float, text: str) -> None:
    assert units.age(seconds) == text


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [("20 GB/s", "GB/s", 20.0), ("90.0", "GB/s", 90.0), ("1 GiB/s", "GB/s", 2**30 / 1e9), ("8 GB", "B", 8e9),
     ("2GiB", "B", 2.0**31), ("30s", "s", 30.0), ("5 min", "s", 300.0), ("250 ms", "s", 0.25), ("1h", "s", 3600.0),
     ("0.2", "0..1", 0.2), ("1e3", "B", 1000.0)],
)  # fmt: skip
def test_quantities(text: str, unit: str, value: float) -> None:
    assert units.parse(text, unit) == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "unit"),
    [("8 Gb", "B"), ("8 GB", "GB/s"), ("8 GB/s", "B"), ("x", ""), ("1e999", "B"), ("", "s"), ("3 s", "B")],
)
def test_what_is_no_quantity(text: str, unit: str) -> None:
    with pytest.raises(ValueError, match="number"):
        units.parse(text, unit)
