"""What a device has told so far, for those who ask while the step runs."""

from __future__ import annotations

import math

from piolet.samples.sampler import DeviceTotals


def test_a_counter_is_what_was_added_to_it() -> None:
    totals = DeviceTotals(2, [1])
    for joules in (500_000.0, 500_010.0, math.nan, 500_030.0, 5.0, 12.0):
        totals.add(1.0, (0.5, joules))
    assert totals.sums == [3.0, 37.0]  # 10 + 20, and after it began again 7
