"""What a reader of a node's journal gets of a line."""

from __future__ import annotations

from typing import Any

import pytest
from piolet.base.errors import EventError
from piolet.events.envelope import Event, encode
from piolet.observe import journal


def _event(kind: str = journal.FRAME, **changes: Any) -> Event:
    given: dict[str, Any] = {"job": 112, "step": "0", "uid": 1000, "body": {}} | changes
    return Event("alps", "nid001", "0" * 16, 1, 1.5, kind, "root", **given)


def test_a_line_says_its_step() -> None:
    assert journal.line_of(encode(_event())).step == ("112", "0")  # type: ignore[union-attr]


def test_a_job_without_a_number_is_called_as_its_control_group_is() -> None:
    line = journal.line_of(encode(_event(job=None, body={"sluid": "s1ab2"})))
    assert line is not None
    assert line.step == ("s1ab2", "0")


def test_a_record_of_the_node_is_of_no_step() -> None:
    assert journal.line_of(encode(_event("spool.lost", job=None, step="", uid=None))) is None


@pytest.mark.parametrize("change", [{"job": None}, {"step": ""}, {"uid": None}, {"job": None, "body": {"sluid": 3}}])
def test_a_record_that_names_no_step_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(EventError, match="does not say of which step"):
        journal.line_of(encode(_event(**change)))


def test_rows_are_by_column_and_null_is_missing() -> None:
    frame = _event(body={"host": {"columns": ["cpu", "memory"], "rows": [[1.0, None]]}})
    assert list(journal.rows_of(frame, "host")) == [{"cpu": 1.0, "memory": None}]
    assert list(journal.rows_of(frame, "gpu")) == []


@pytest.mark.parametrize(
    "table",
    [3, {}, {"columns": ["cpu"], "rows": 3}, {"columns": [3], "rows": []}, {"columns": ["cpu"], "rows": [[1, 2]]},
     {"columns": ["cpu"], "rows": [3]}],
)  # fmt: skip
def test_what_is_no_table_is_refused(table: object) -> None:
    with pytest.raises(EventError):
        list(journal.rows_of(_event(body={"host": table}), "host"))
