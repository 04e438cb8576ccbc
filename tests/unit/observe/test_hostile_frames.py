"""Records that no sampler writes, from a node with a wrong clock or worse: other steps' data are made all the same."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from piolet.events.envelope import decode
from piolet.observe import reading
from piolet.observe.catalogue import WHOLE
from piolet.observe.keeping import Keeper
from piolet.observe.keepsettings import KeepConfig
from piolet.observe.spool import Line, Spool

from tests.unit.observe.test_spool import START, batch, node_lines

VALUES: tuple[Any, ...] = (float("inf"), 1e12, "a" * 2000, [], True)


def changes(value: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (kind of record, what of its body is changed)."""
    for key in ("began", "found", "up", "interval", "version", "devices", "sources", "simulated"):
        yield "observe.step", {key: value}
    for key in ("up", "span", "host"):
        yield "observe.frame", {key: value}
    yield "observe.end", {"ended": value, "quality": value}
    for table, columns in (
        ("gpu", ["gpu", "uuid", "sm"]),
        ("host", ["cpu", "memory", "node"]),
        ("quality", ["source", "start", "end", "reason", "values"]),
        ("events", ["time", "source", "kind", "text", "node"]),
        ("marks", ["time", "name", "value"]),
    ):
        yield "observe.frame", {table: {"columns": columns, "rows": [[value] * len(columns)]}}


def changed(lines: list[Line], kind: str, change: dict[str, Any]) -> list[Line]:
    """Return a step's records, those of a kind changed."""
    found = []
    for one in lines:
        said = json.loads(one.text)
        if said["kind"] == kind:
            said["body"] |= change
        # A number that is too large for a float is how JSON has one that is infinite.
        found.append(dataclasses.replace(one, text=json.dumps(said).replace("Infinity", "1e999").encode() + b"\n"))
        assert decode(found[-1].text)
    return found


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_one_node_says_keeps_no_other_steps_data_waiting(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keeper = Keeper(tmp_path, KeepConfig(directory=str(tmp_path), findings=False), lambda: START + 3600.0)
    store = Spool(keeper.catalogue)
    said = [change for value in VALUES for change in changes(value)]
    for number, (kind, change) in enumerate(said, 1):
        lines = node_lines("n1", [0, 1, 2], end=START + 40, epoch=f"{number:016x}", job=number)
        store.append([batch("n1", changed(lines, kind, change))])
    keeper.turn()
    for number, told in enumerate(said, 1):
        (row,) = keeper.catalogue.rows("job = ?", str(number))
        assert row.state == WHOLE, (told, caplog.text)
        step = reading.open_step(tmp_path / row.path)
        assert step.start <= step.end, told
        for table in ("host", "events", "quality"):
            assert set(step.table(table)["node"].to_pylist()) <= {"n1"}, told
    keeper.catalogue.close()
