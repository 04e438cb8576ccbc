"""What a class of a user's own says of itself is read, not executed, and nothing in its file's place holds that up."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest
from piolet.api import Context
from piolet.base.errors import VetError
from piolet.vet import glance, protocol
from piolet.vet.catalogue import catalogue
from piolet.vet.runner import child

HEAD = "import piolet.api\n\n\nclass Mine(piolet.api.Eval):\n"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (HEAD + "    better = 'higher'\n", "higher"),
        (HEAD + "    pass\n", ""),
        (HEAD + "    better = which()\n", None),
        (HEAD.replace("piolet.api.Eval", "Other") + "    pass\n", None),
        ("raise SystemExit('it was executed')\n" + HEAD + "    better = 'lower'\n", "lower"),
        ("#" * (1 << 20) + "\n" + HEAD + "    better = 'higher'\n", None),
    ],
    ids=["says", "plain", "computed", "other base", "not executed", "too long"],
)
def test_what_a_class_says(tmp_path: Path, text: str, found: str | None) -> None:
    (tmp_path / "own.py").write_text(text, "utf-8")
    assert glance.look("own.Mine", [str(tmp_path)]).better == found


@pytest.mark.parametrize("scope", ["pair", "group"])
def test_a_users_class_judges_its_node_alone(tmp_path: Path, scope: str) -> None:
    """It ended with "KeyError: 'peer'" on all nodes, when the allocation had been paid for."""
    (tmp_path / f"own_{scope}.py").write_text(f"{HEAD}    scope = '{scope}'\n", "utf-8")
    (tmp_path / "p.yaml").write_text(f"evals:\n- type: own_{scope}.Mine\n")
    with pytest.raises(VetError, match=f"the eval 'own_{scope}.Mine' has scope = '{scope}': nodes meet for"):
        protocol.load(str(tmp_path / "p.yaml"), catalogue(), [str(tmp_path)])
    # What cannot be seen from here is refused on the node.
    (tmp_path / f"own_{scope}.py").write_text(f"{HEAD}    scope = '{scope}'.lower()\n", "utf-8")
    (task,) = protocol.load(str(tmp_path / "p.yaml"), catalogue(), [str(tmp_path)]).tasks
    found = child.judge(task, Context("n1", time.monotonic() + 5, ("n1", "n2")))
    assert (found["outcome"], found["whose"]) == ("inconclusive", "user")
    assert found["reason"].startswith(f"own_{scope}.Mine has scope = '{scope}': nodes meet for Piolet's own evals")


def test_a_pipe_in_the_place_of_the_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "own.py")
    assert glance.look("own.Mine", [str(tmp_path)]) == glance.ClassGlance()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (HEAD + "    better = (\n", "own.py, line 5: '(' was never closed"),
        ("class Mine(:\n", "own.py, line 1: invalid syntax"),
        (HEAD + "  x = 1\n    y = 2\n", "own.py, line 6: unexpected indent"),
        (HEAD + "    better = '\0'\n", "own.py"),
        (HEAD.replace("Mine", "Other") + "    pass\n", "own.py has no class 'Mine'"),
        ("", "own.py has no class 'Mine'"),
    ],
)
def test_what_no_import_can_give_is_an_error_with_its_line(tmp_path: Path, text: str, why: str) -> None:
    """`piolet vet check`, sbatch and srun say so before anything is queued."""
    (tmp_path / "own.py").write_text(text, "utf-8")
    assert why in glance.look("own.Mine", [str(tmp_path)]).broken
    (tmp_path / "p.yaml").write_text("evals:\n- type: limits\n- type: own.Mine\n")
    with pytest.raises(VetError, match=re.escape(why)) as found:
        protocol.load(str(tmp_path / "p.yaml"), catalogue(), [str(tmp_path)])
    assert found.value.location is not None and found.value.location.line == 3
    assert found.value.message.startswith("the eval 'own.Mine' cannot be imported: ")
    # What another Python makes of it nobody knows here.
    (tmp_path / "p.yaml").write_text("evals:\n- {type: own.Mine, where: environment}\n")
    assert protocol.load(str(tmp_path / "p.yaml"), catalogue(), [str(tmp_path)]).tasks


@pytest.mark.parametrize(
    "text",
    ["from theirs import *\n", "from theirs import Mine\n", "import theirs as Mine\n", "if True:\n class Mine: pass\n",
     "Mine = make()\n", "for Mine in ():\n pass\n", "exec('class Mine: pass')\n", "globals()['Mine'] = 1\n",
     "def __getattr__(name): return 1\n"],
)  # fmt: skip
def test_what_may_be_there_is_left_to_the_nodes(tmp_path: Path, text: str) -> None:
    (tmp_path / "own.py").write_text(text, "utf-8")
    assert glance.look("own.Mine", [str(tmp_path)]).broken == ""
