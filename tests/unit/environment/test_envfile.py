"""Files of variables."""

from __future__ import annotations

from pathlib import Path

import pytest
from piolet.environment import envfile
from piolet.submission.dependencies import Host, Kind

from tests.unit.environment.rendering import Render, refusal


def test_a_file_of_variables(tmp_path: Path) -> None:
    (tmp_path / "v.env").write_text(
        '# no\n\nA=1\nexport B=two words  \n  C="quoted = x"\nD=\'$HOME\'\nE=${X}\nF=a"b\nG=\nA=again\n\tH=\\n\n'
    )
    _, found = envfile.read(str(tmp_path / "v.env"))
    assert {name: entry.value for name, entry in found.items()} == {
        "A": "again",
        "B": "two words",
        "C": "quoted = x",
        "D": "$HOME",
        "E": "$${X}",
        "F": 'a"b',
        "G": "",
        "H": "\\n",
    }
    assert found["C"].locate().line == 5


def test_it_lies_below_the_table(made: Render, tmp_path: Path, host: Host) -> None:
    (tmp_path / "one.env").write_text("A=one\nB=one\nLITERAL=${PATH}\n")
    (tmp_path / "two.env").write_text("B=two\nGONE=\n")
    definition = made('image = "img"\nenv_file = ["./one.env", "two.env"]\n[env]\nA = "table"\n').definition
    assert {name: definition.set_env[name] for name in ("A", "B", "LITERAL")} == {
        "A": "table",
        "B": "two",
        "LITERAL": "${PATH}",
    }
    assert "GONE" in definition.unset_env
    assert {(Kind.FILE, f"{tmp_path}/{name}.env") for name in ("one", "two")} <= {
        (one.kind, one.name) for one in host.dependencies
    }
    assert made('env_file = "${HOME}/one.env"\n').definition.set_env["A"] == "one"


def test_a_base_s_table_lies_below_a_file(made: Render, tmp_path: Path) -> None:
    (tmp_path / "v.env").write_text("A=file\n")
    text = 'base_environment = "./b.toml"\nenv_file = "./v.env"\n'
    assert made(text, b='[env]\nA = "base"\n').definition.set_env["A"] == "file"


@pytest.mark.parametrize(
    ("text", "message", "line"),
    [
        ("A=1\nnonsense\n", "this line is not NAME=VALUE", 2),
        ("=1\n", "this line is not NAME=VALUE", 1),
        ("A B=1\n", "this line is not NAME=VALUE", 1),
        ("SLURM_X=1\n", "SLURM_X belongs to the step, so that a definition file cannot set or unset it", 1),
    ],
)
def test_a_mistake_has_its_place(made: Render, tmp_path: Path, text: str, message: str, line: int) -> None:
    (tmp_path / "v.env").write_text(text)
    error = refusal(made, 'env_file = "./v.env"\n')
    assert error.message == message
    assert error.location is not None
    assert (error.location.path, error.location.line) == (f"{tmp_path}/v.env", line)


def test_a_file_that_is_not_there(made: Render, tmp_path: Path) -> None:
    error = refusal(made, '\nenv_file = "./none.env"\n')
    assert error.message == f"cannot read {tmp_path}/none.env: No such file or directory"
    assert error.location is not None
    assert error.location.line == 2
