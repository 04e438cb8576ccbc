"""Who is shown what of the data of steps."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from piolet.base.errors import EventError
from piolet.central import stepanswers
from piolet.central.answers import Asker
from piolet.central.latest import Latest
from piolet.observe import packing, writing
from piolet.observe.catalogue import WHOLE, Catalogue, Row

ALICE, BOB = 1000, 1001
START = 1_790_000_000.0


@pytest.fixture
def catalogue(tmp_path: Path) -> Iterator[Catalogue]:
    """A catalogue of nothing."""
    made = Catalogue(tmp_path)
    yield made
    made.close()


def step(catalogue: Catalogue, job: int, uid: int) -> Row:
    """Make a step with a mark that is its user's."""
    row = catalogue.add(str(job), "0", 0, uid, START, START)
    catalogue.change(row, state=WHOLE)
    directory = catalogue.root / row.path
    directory.mkdir(parents=True)
    writing.write_meta(directory, {"job": str(job), "step": "0", "start": round(START * 1e9), "name": f"of {uid}"})
    return row


def asked(catalogue: Catalogue, asker: int | None, question: str, **said: str) -> dict[str, Any]:
    """Ask as somebody; 0 is staff."""
    answers: Any = SimpleNamespace(ask={})
    stepanswers.add(answers, catalogue.root, Latest(lambda: START))
    found: dict[str, Any] = answers.ask["GET", question](Asker(asker, asker == 0, False), said)
    return found


def test_short_steps_together_are_each_its_users(catalogue: Catalogue) -> None:
    rows = [step(catalogue, 1, ALICE), step(catalogue, 2, BOB)]
    packing.pack(catalogue, "2026-09-21", rows)
    for uid, name in ((ALICE, "1.0"), (BOB, "2.0")):
        said = asked(catalogue, uid, "stepfile", name=name, file="meta.json")
        assert f"of {uid}" in base64.b64decode(said["data"]).decode()
        assert [one["name"] for one in asked(catalogue, uid, "steps")["steps"]] == [name]
        assert list(asked(catalogue, uid, "step", name=name)["files"]) == ["meta.json"]
    for name in ("2.0", "1.0/../2.0", "2.0 "):
        with pytest.raises(EventError, match="there are no data"):
            asked(catalogue, ALICE, "stepfile", name=name, file="meta.json")
    with pytest.raises(EventError, match="there is no file"):
        asked(catalogue, ALICE, "stepfile", name="1.0", file="../2.0/meta.json")


def test_a_number_of_another_s_row_opens_nothing(catalogue: Catalogue) -> None:
    mine, others = step(catalogue, 1, ALICE), step(catalogue, 1, BOB)
    assert mine.path != others.path
    for uid, row in ((ALICE, mine), (BOB, others)):
        said = asked(catalogue, uid, "stepfile", name="1.0", file="meta.json", id=str(row.id))
        assert f"of {uid}" in base64.b64decode(said["data"]).decode()
    with pytest.raises(EventError, match="there are no data"):
        asked(catalogue, ALICE, "stepfile", name="1.0", file="meta.json", id=str(others.id))
    assert len(asked(catalogue, 0, "steps")["steps"]) == 2
    assert [one["uid"] for one in asked(catalogue, 0, "steps", uid=str(BOB))["steps"]] == [BOB]


def test_a_certificate_is_no_user(catalogue: Catalogue) -> None:
    step(catalogue, 1, ALICE)
    assert asked(catalogue, None, "steps")["steps"] == []
    with pytest.raises(EventError, match="there are no data"):
        asked(catalogue, None, "step", name="1.0")


@pytest.mark.parametrize("name", ["uid", "after"])
def test_numbers_are_numbers(catalogue: Catalogue, name: str) -> None:
    for text in ("-1", "one", "9" * 30):
        with pytest.raises(EventError, match="is no number"):
            asked(catalogue, ALICE, "steps", **{name: text})
