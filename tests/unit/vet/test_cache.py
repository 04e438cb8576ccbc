"""Fresh results are used again, until something happened to the node."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from piolet.api import FAIL, PASS, Verdict
from piolet.base.errors import VetError
from piolet.vet import cache, results, store, verdicts
from piolet.vet.runner import records
from piolet.vet.runner.plan import Plan, Task

TASK = Task("a", "a", "m:a", cache_s=100.0, better="higher")
PLAN = Plan("p", (TASK,))


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def keep(path: Path, clock: Clock, outcome: str = PASS, stamp: str = "s", plan: Plan = PLAN) -> None:
    verdict = Verdict(outcome, "" if outcome == PASS else "bad", "m", 5.0)
    cache.Cache(str(path), stamp, clock).keep(plan, [records.record("n1", "a", "a", verdict, 0.1)])


def fresh(path: Path, clock: Clock, stamp: str = "s", plan: Plan = PLAN) -> bool:
    return bool(cache.Cache(str(path), stamp, clock).fresh(plan))


def test_a_pass_is_fresh_for_its_time(tmp_path: Path) -> None:
    path, clock = tmp_path / "c", Clock()
    keep(path, clock)
    assert fresh(path, clock)
    clock.now += 99
    assert fresh(path, clock)
    clock.now += 2
    assert not fresh(path, clock)
    clock.now -= 500  # the clock was put back
    assert not fresh(path, clock)


def test_what_makes_it_stale(tmp_path: Path) -> None:
    path, clock = tmp_path / "c", Clock()
    keep(path, clock)
    assert not fresh(path, clock, stamp="after a reboot")
    changed = Plan("p", (dataclasses.replace(TASK, parameters={"x": 1}),))
    assert not fresh(path, clock, plan=changed)
    uncached = Plan("p", (dataclasses.replace(TASK, cache_s=0.0),))
    assert not fresh(path, clock, plan=uncached)
    keep(path, clock, outcome=FAIL)
    assert not fresh(path, clock)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"passed": 3, "history": []}', '{"passed": {"x": 1}}'])
def test_a_damaged_file_is_empty(tmp_path: Path, text: str) -> None:
    (tmp_path / "c").write_text(text)
    assert not fresh(tmp_path / "c", Clock())
    keep(tmp_path / "c", Clock())
    assert fresh(tmp_path / "c", Clock())


def test_a_cache_that_cannot_be_written_hurts_nobody() -> None:
    keep(Path("/proc/none/c"), Clock())


def test_history_grows_and_is_bounded(tmp_path: Path) -> None:
    for _ in range(60):
        keep(tmp_path / "c", Clock())
    assert cache.Cache(str(tmp_path / "c"), "s", Clock()).past(PLAN) == {TASK.digest(): [5.0] * 50}


def tree(root: Path) -> None:
    for name, text in (
        ("proc/sys/kernel/random/boot_id", "one"),
        ("sys/module/nvidia/version", "580"),
        ("sys/class/net/hsn0/carrier_down_count", "1"),
        ("sys/class/net/hsn0/device/x", ""),
        ("sys/class/net/veth0/carrier_down_count", "1"),
        ("sys/class/infiniband/mlx5_0/ports/1/counters/link_downed", "0"),
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("proc/sys/kernel/random/boot_id", True),
        ("sys/module/nvidia/version", True),
        ("sys/class/net/hsn0/carrier_down_count", True),
        ("sys/class/infiniband/mlx5_0/ports/1/counters/link_downed", True),
        ("sys/class/net/veth0/carrier_down_count", False),
    ],
)
def test_the_stamp(tmp_path: Path, name: str, changes: bool) -> None:
    tree(tmp_path)
    before = cache.stamp(str(tmp_path))
    (tmp_path / name).write_text("other")
    assert (cache.stamp(str(tmp_path)) != before) is changes


def test_an_xid_makes_stale(tmp_path: Path) -> None:
    line = "NVRM: Xid (PCI:0000:10:00): 79, GPU has fallen off the bus."
    assert cache.stamp(str(tmp_path), [line]) != cache.stamp(str(tmp_path), ["something else"])


def test_the_result_file(tmp_path: Path) -> None:
    found = [records.record("n1", "a", "a", Verdict(PASS, "", "m", 1.0, None, "s"), 0.1)]
    decision = verdicts.decide(PLAN, ["n1", "n2"], found)
    path = str(tmp_path / "vet-7.json")
    results.write(path, results.document(PLAN, decision, "7", 1.0, 2.0, ["n1"]))
    value = results.read(path)
    assert value["nodes"]["n2"] == {"state": "bad", "reasons": ["a: the node told nothing of it"]}
    assert [record.node for record in value["records"]] == ["n1", "n2"]
    assert [name.name for name in tmp_path.iterdir()] == ["vet-7.json"]


def test_what_is_no_result(tmp_path: Path) -> None:
    with pytest.raises(VetError, match="none does not exist"):
        results.read(str(tmp_path / "none"))
    (tmp_path / "torn").write_text("{")
    with pytest.raises(VetError, match="no result of a vetting in"):
        results.read(str(tmp_path / "torn"))
    store.write(str(tmp_path / "x"), {"version": 99})
    with pytest.raises(VetError, match="another version"):
        results.read(str(tmp_path / "x"))
    with pytest.raises(VetError, match="cannot write"):
        results.write("/proc/x/y.json", {})
