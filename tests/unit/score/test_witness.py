"""When utilisation contradicts the profiling counters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from piolet.score.witness import contradicted


def found(seconds: float = 1.0, **values: Any) -> list[bool]:
    size = max(len(array) for array in values.values() if isinstance(array, list))
    arrays = {
        name: np.array(value if isinstance(value, list) else [value] * size, float) for name, value in values.items()
    }
    return list(contradicted(arrays, np.full(size, seconds), np.zeros(size, int), 1))


def moving(size: int) -> list[float]:
    return [0.01 * (index % 7) for index in range(size)]


@pytest.mark.parametrize(
    ("samples", "seconds", "lies"),
    [(5, 1.0, True), (4, 1.0, False), (5, 0.1, False), (20, 0.1, False), (22, 0.1, True)],
)
def test_zeros_for_5_samples_and_2_seconds(samples: int, seconds: float, lies: bool) -> None:
    """Utilisation is of up to the last second: after work has ended it is behind for as long."""
    values = {"engine": [0.0] * samples, "sm": 0.0, "utilisation": 1.0, "dram": moving(samples)}
    assert found(seconds, **values) == [lies] * samples
    values = {"engine": 1.0, "sm": [0.0] * samples, "utilisation": 1.0, "dram": moving(samples)}
    assert found(seconds, **values) == [lies] * samples


def test_little_is_not_nothing() -> None:
    """One of 132 multiprocessors; an idle GPU; a utilisation that is low, or is not told."""
    assert not any(found(engine=[1.0] * 9, sm=1 / 132, utilisation=1.0))
    assert not any(found(engine=[0.0] * 9, sm=0.0, utilisation=0.0))
    assert not any(found(engine=[0.0] * 9, sm=0.0, utilisation=0.5))
    assert not any(found(engine=[0.0] * 9, sm=0.0, utilisation=float("nan")))
    assert not any(found(engine=[float("nan")] * 9, sm=float("nan"), utilisation=1.0))


def test_frozen_counters() -> None:
    """To the last bit, and far from the utilisation; what moves, or is right, is believed."""
    assert all(found(engine=[0.1] * 9, sm=0.05, dram=0.3, utilisation=0.9))
    assert not any(found(engine=[0.1] * 9, sm=0.05, dram=moving(9), utilisation=0.9))
    assert not any(found(engine=[1.0] * 9, sm=0.9, dram=0.3, utilisation=1.0))


def test_bursts_under_counters_that_are_silent() -> None:
    """Utilisation that comes and goes contradicts a run of zeros all the same; what it says of work before does not."""
    bursts = ([1.0] * 15 + [0.3] * 10) * 3
    lies = found(0.1, engine=[0.0] * 75, sm=0.0, dram=moving(75), utilisation=bursts)
    assert all(lies)
    engine = [0.9] * 30 + [0.0] * 60
    behind = [1.0] * 48 + [0.0] * 42  # 1.8 s after work has ended
    assert not any(found(0.1, engine=engine, sm=0.5, dram=moving(90), utilisation=behind))
    steady = [1.0] * 30 + [0.0] * 60
    assert not any(found(0.1, engine=steady, sm=steady, dram=0.1, utilisation=behind))


def test_only_the_run_is_doubted() -> None:
    engine = [0.9] * 6 + [0.0] * 6 + [0.9] * 6
    assert found(engine=engine, sm=0.5, dram=moving(18), utilisation=1.0) == [value == 0 for value in engine]


def test_gpus_are_apart() -> None:
    values = {"engine": np.tile([0.0, 0.9], 9), "sm": np.full(18, 0.5), "utilisation": np.ones(18)}
    lies = contradicted(values, np.ones(18), np.tile([0, 1], 9), 2)
    assert lies.tolist() == [True, False] * 9
