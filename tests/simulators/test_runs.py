"""Made runs are what they say: the same for a seed, in the layout, with the fault that was asked for."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
from piolet.observe import layout

from tests.simulators import runs, runs2

BOTH = pytest.mark.parametrize("maker", [runs, runs2], ids=["runs", "runs2"])


@BOTH
def test_a_seed_gives_the_same_run_and_another_seed_another(maker: ModuleType) -> None:
    one, again, other = maker.make(5), maker.make(5), maker.make(6)
    for name in layout.TABLES:
        assert one.table(name).equals(again.table(name)), name
    assert not one.table("host").equals(other.table("host"))


@BOTH
@pytest.mark.parametrize("fault", ["", *runs.FAULTS])
def test_tables_are_of_the_layout_and_the_effect_is_at_least_the_stated_one(maker: ModuleType, fault: str) -> None:
    run = maker.make(3, fault)
    for name in layout.TABLES:
        assert run.table(name).schema.equals(layout.schema(name)), name
    assert run.truth.fault == fault
    assert not fault or run.truth.effect >= runs.FAULTS[fault].effect
    assert set(run.meta) <= set(layout.META)
    assert 0 <= run.truth.start < run.truth.end <= (run.end - run.start) / 1e9 + 1 or not fault
    assert not run.truth.node or run.truth.node in run.nodes


def test_sensors_lose_mix_up_and_repeat_samples() -> None:
    disordered = lost = 0
    for seed in range(20):
        run = runs.make(seed)
        times = run.table("host", ["time", "node"])
        first = times.filter(np.asarray(times["node"].to_pylist()) == run.nodes[0])["time"].to_numpy()
        disordered += bool((np.diff(first) <= np.timedelta64(0)).any())
        lost += len(run.quality) > 0
    assert disordered and lost
