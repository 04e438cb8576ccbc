"""Sources of power, from recorded trees: Cray's pm_counters and RAPL."""

from __future__ import annotations

from pathlib import Path

import pytest
from piolet.api import Unavailable
from piolet.observe.sources.cray_power import CrayPower
from piolet.observe.sources.rapl import Rapl

from .trees import SECOND, only, opened, plant, told

PM = "/sys/cray/pm_counters"
RAPL = "/sys/class/powercap/intel-rapl:{}"


def pm(energy: int, fresh: int, **more: str) -> dict[str, str]:
    stamp = " 1754300000123456 us\n"
    return {
        f"{PM}/energy": f"{energy} J{stamp}", f"{PM}/power": f"999 W{stamp}", f"{PM}/freshness": f"{fresh}\n",
        **{f"{PM}/{name}": f"{value} J{stamp}" for name, value in more.items()},
    }  # fmt: skip


def test_power_is_the_mean_of_energy(tmp_path: Path) -> None:
    plant(tmp_path, pm(1000, 5, cpu_energy="100"))
    values = only(told(opened(CrayPower, tmp_path), tmp_path, pm(6000, 105, cpu_energy="1100")))
    assert values == {"node_power": 500.0, "cpu_power": 100.0}


def test_figures_that_are_not_fresh_are_missing(tmp_path: Path) -> None:
    """A controller that hangs leaves plausible figures; when it tells again, the mean is of all the time since."""
    plant(tmp_path, pm(1000, 5))
    source = opened(CrayPower, tmp_path)
    assert told(source, tmp_path, pm(1000, 5)) == []
    assert source.blanks == {("", "the node's controller told nothing new (freshness)"): 1}
    plant(tmp_path, pm(9000, 200))
    assert only(source.read(21 * SECOND)) == {"node_power": 400.0}


def test_what_a_controller_does_not_have_is_said(tmp_path: Path) -> None:
    plant(tmp_path, pm(1, 1))
    assert opened(CrayPower, tmp_path).never == {"cpu_power": f"{PM} does not have it"}


def test_figures_without_freshness_are_not_believed(tmp_path: Path) -> None:
    plant(tmp_path, {f"{PM}/energy": "5 J 1 us\n"})
    with pytest.raises(Unavailable, match="freshness"):
        opened(CrayPower, tmp_path)


def rapl(zone: str, name: str, energy: int) -> dict[str, str]:
    where = RAPL.format(zone)
    return {
        f"{where}/name": f"{name}\n",
        f"{where}/energy_uj": f"{energy}\n",
        f"{where}/max_energy_range_uj": "262143328850\n",
    }


def test_packages_are_added_up_and_their_parts_are_not(tmp_path: Path) -> None:
    parts = {**rapl("0:0", "dram", 5), **rapl("1", "package-1", 0), **rapl("2", "psys", 0)}
    plant(tmp_path, {**rapl("0", "package-0", 0), **parts})
    after = {**rapl("0", "package-0", 1_000_000_000), **rapl("1", "package-1", 500_000_000), **rapl("2", "psys", 9**12)}
    assert only(told(opened(Rapl, tmp_path), tmp_path, after)) == {"cpu_power": 150.0}


def test_a_counter_that_begins_again_is_carried_on(tmp_path: Path) -> None:
    plant(tmp_path, rapl("0", "package-0", 262_143_328_850 - 400_000_000))
    assert only(told(opened(Rapl, tmp_path), tmp_path, rapl("0", "package-0", 600_000_000))) == {"cpu_power": 100.0}


def test_without_rapl_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="no RAPL"):
        opened(Rapl, tmp_path)
