"""The site's long baseline of a node: what counts for it, who can change it, and that a slow loss is seen."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from piolet.api import FAIL, INCONCLUSIVE, NODE, PASS, USER, Verdict
from piolet.node.root import sitepast as root
from piolet.node.server.past import Past
from piolet.node.server.verdicts import Who
from piolet.vet import sitepast
from piolet.vet.runner import records
from piolet.vet.runner.plan import Task
from piolet.vet.runner.records import Record

from tests.support import spools

TASK = Task("mine", "cpu_gemm", "m:G", baseline="site", better="higher", effect=0.1)
RAN_ON = {"cpus": 4, "gpus": 0}


def line(value: Any = 100.0, **changes: Any) -> dict[str, Any]:
    said = {"value": value, "outcome": PASS, "cached": False, "parameters": {"size": 8}, "ran_on": RAN_ON}
    said |= {name: changes.pop(name) for name in list(changes) if name in said}
    return {"origin": "built-in", "kind": "cpu_gemm", "plan": None, "said": said, **changes}


def spooled(one: dict[str, Any]) -> bytes:
    return json.dumps({**one, "protocol": None, "release": None}).encode()


def row(value: float | None, outcome: str = PASS) -> Record:
    verdict = Verdict(outcome, "" if outcome == PASS else "slow", "product", value, None, "GFLOP/s")
    return records.record("n1", "mine", "cpu_gemm", verdict, 0.1)


def test_a_loss_of_a_hundredth_a_run_is_seen() -> None:
    """Whoever compares with the latest runs only follows it down."""
    table: dict[str, list[list[float]]] = {}
    value, failed = 100.0, 0
    for run in range(100):
        own = [one for _, one in table.get(sitepast.key("cpu_gemm", {"size": 8}, RAN_ON), ())]
        found = sitepast.against(TASK, row(value), "cpu_gemm", own)
        failed += found.outcome == FAIL
        if found.outcome == PASS:
            sitepast.take(table, run % 3, line(value))
        else:
            assert found.whose == NODE and "of this node's first 20 runs for the site" in found.reason
        value *= 0.99
    assert failed > 50


@pytest.mark.parametrize(
    "entry",
    [
        line(origin="user"),
        line(kind=None),
        line(outcome=FAIL),
        line(cached=True),
        line(None),
        line(True),
        line("100"),
        line(float("nan")),
        line(float("inf")),
        {"origin": "built-in", "kind": "cpu_gemm", "said": {"value": 1.0, "outcome": PASS, "cached": False}},
        {"origin": "built-in", "kind": "cpu_gemm"},
    ],
)
def test_what_does_not_count(entry: dict[str, Any]) -> None:
    table: dict[str, list[list[float]]] = {}
    assert not sitepast.take(table, 1000, entry) and not table


def test_one_user_gives_half_of_the_values_at_most() -> None:
    table: dict[str, list[list[float]]] = {}
    assert sum(sitepast.take(table, 1000, line(1.0)) for _ in range(50)) == 10
    assert sum(sitepast.take(table, 1001, line(100.0)) for _ in range(50)) == 10
    assert not sitepast.take(table, 1002, line(100.0))
    # Another number of processors, or other parameters, are another measurement.
    assert sitepast.take(table, 1000, line(ran_on={"cpus": 8, "gpus": 0}))
    assert sitepast.take(table, 1000, line(parameters={"size": 9}))
    assert sorted(map(len, table.values())) == [1, 1, 20]


def test_there_are_so_many_measurements_at_most() -> None:
    table: dict[str, list[list[float]]] = {}
    for size in range(sitepast.KEYS_MAX + 10):
        sitepast.take(table, 1000, line(parameters={"size": size}))
    assert len(table) == sitepast.KEYS_MAX
    full = {
        f"{at:032x}": [[4294967294, 1.2345678901234567e-300]] * sitepast.VALUES_MAX for at in range(sitepast.KEYS_MAX)
    }
    assert len(json.dumps(full, separators=(",", ":"))) < root.MOST


def test_without_a_past_nothing_is_compared() -> None:
    found = sitepast.against(TASK, row(1.0), "cpu_gemm", [100.0] * 3)
    assert (found.outcome, found.past) == (PASS, 3)
    found = sitepast.against(TASK, row(1.0), "cpu_gemm", [])
    assert (found.outcome, found.past) == (PASS, 0)
    assert sitepast.against(TASK, row(1.0, FAIL), "cpu_gemm", [100.0] * 9) == row(1.0, FAIL)
    users = sitepast.against(TASK, row(1.0), None, [100.0] * 9)
    assert (users.outcome, users.whose) == (INCONCLUSIVE, USER)
    none = sitepast.against(dataclasses.replace(TASK, better=""), row(1.0), "cpu_gemm", [100.0] * 9)
    assert none.outcome == INCONCLUSIVE


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"a": 1}', '{"a": [[1]]}', '{"a": [["x", 1]]}', "[" * 100_000, "null"]
)
def test_rubbish_is_nothing(text: str) -> None:
    assert sitepast.load(text) == {}


def test_it_survives_the_server(tmp_path: Path) -> None:
    spool, verdicts = spools.spool(tmp_path, "n1")
    for uid in (1000, 1001):
        for value in range(4):
            verdicts.put(Who(uid, 1), spooled(line(float(value))))
    verdicts.put(Who(1002, 1), spooled(line(7.0, origin="user", kind=None)))
    spool.close()
    assert (tmp_path / sitepast.FILE).exists()
    kept = Past(str(tmp_path))
    kept.take(1003, line(9.0))
    kept.save(time.monotonic())
    (own,) = sitepast.load((tmp_path / sitepast.FILE).read_text()).values()
    assert own[-1] == [1003, 9.0] and len(own) >= 2 and {uid for uid, _ in own} <= {1000, 1001, 1003}


def test_root_reads_the_servers_own_plain_file_only(tmp_path: Path) -> None:
    """What it read goes to a user's process: it must not be another file under that name."""
    assert (sitepast.FACT, sitepast.FILE, sitepast.SIZE_MAX) == (root.FACT, root.FILE, root.MOST)
    file, other = tmp_path / "past.json", tmp_path / "secret"
    owner = os.getuid()
    assert root.read(str(file), owner) is None
    file.write_text("{}")
    assert root.read(str(file), owner) == "{}"
    assert root.read(str(file), owner + 1) is None
    os.link(file, other)
    assert root.read(str(file), owner) is None
    other.unlink()
    file.write_text("x" * (root.MOST + 1))
    assert root.read(str(file), owner) is None
    file.unlink()
    other.write_text("{}")
    file.symlink_to(other)
    assert root.read(str(file), owner) is None
    file.unlink()
    os.mkfifo(file)
    assert root.read(str(file), owner) is None
