"""What a class of a user's own says of itself is read, not executed, and nothing in its file's place holds that up."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from piolet.vet import glance

HEAD = "import piolet.api\n\n\nclass Mine(piolet.api.Eval):\n"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (HEAD + "    better = 'higher'\n", "higher"),
        (HEAD + "    pass\n", ""),
        (HEAD + "    better = which()\n", None),
        (HEAD.replace("piolet.api.Eval", "Other") + "    pass\n", None),
        ("raise SystemExit('it was executed')\n" + HEAD + "    better = 'lower'\n", "lower"),
        ("class Mine(:\n", None),
        ("#" * (1 << 20) + "\n" + HEAD + "    better = 'higher'\n", None),
    ],
    ids=["says", "plain", "computed", "other base", "not executed", "no Python", "too long"],
)
def test_what_a_class_says(tmp_path: Path, text: str, found: str | None) -> None:
    (tmp_path / "own.py").write_text(text, "utf-8")
    assert glance.better("own.Mine", [str(tmp_path)]) == found


def test_a_pipe_in_the_place_of_the_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "own.py")
    assert glance.better("own.Mine", [str(tmp_path)]) is None
