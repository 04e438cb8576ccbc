"""`piolet env` new, set, edit, from-pyxis, from-enroot and export."""

from __future__ import annotations

from pathlib import Path

import pytest
from piolet.cli import main as cli

from tests.unit.cli.conftest import Captured, Client


def test_a_file_from_nothing_to_the_end(work: Path, client: Client, capsys: Captured) -> None:
    assert cli.main(["env", "new", "n.toml", "image=img", "env=A=1"]) == 0
    assert cli.main(["env", "new", "n.toml", "image=img"]) == 1
    assert "n.toml is there already" in capsys.readouterr().err
    (work / "n.toml").chmod(0o640)
    assert cli.main(["env", "set", "n.toml", "workdir=/w", "mount=/tmp:/t", "--remove", "env.A"]) == 0
    assert (work / "n.toml").stat().st_mode & 0o777 == 0o640
    assert (work / "n.toml").read_text().startswith("# Keys and their meaning: man 5 edf\n")
    assert cli.main(["env", "set", "n.toml", "wrkdir=/w"]) == 1
    assert "did you mean 'workdir'?" in capsys.readouterr().err
    assert cli.main(["env", "check", "./n.toml"]) == 0
    assert sorted(path.name for path in work.iterdir() if "n.toml" in path.name) == ["n.toml"]


@pytest.mark.parametrize(("edit", "status", "text"), [("s/img/other/", 0, "other"), ("s/image/imgae/", 1, "img")])
def test_an_editor(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured, edit: str, status: int, text: str
) -> None:
    (work / "e.toml").write_text('image = "img"  # mine\n')
    monkeypatch.setenv("EDITOR", f"sed -i {edit}")
    monkeypatch.delenv("VISUAL", raising=False)
    assert cli.main(["env", "edit", "e.toml"]) == status
    assert (work / "e.toml").read_text() == f'image = "{text}"  # mine\n'
    if status:
        assert "unknown key 'imgae'" in capsys.readouterr().err


def test_an_editor_that_fails(work: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    (work / "e.toml").write_text('image = "img"\n')
    for editor, what in (("false", "false ended with status 1"), ("/no/such", "cannot run /no/such")):
        monkeypatch.setenv("VISUAL", editor)
        assert cli.main(["env", "edit", "e.toml"]) == 1
        assert what in capsys.readouterr().err


def test_from_pyxis(work: Path, capsys: Captured) -> None:
    words = ["srun", "-N2", "--container-image=ubuntu:24.04", "--container-mounts=/a:/b", "--container-name=x", "cmd"]
    assert cli.main(["env", "from-pyxis", *words]) == 0
    out, err = capsys.readouterr()
    assert out == 'image = "ubuntu:24.04"\nhome = false\nmounts = ["/a:/b"]\n'
    assert err.startswith("piolet: warning: not in the definition: --container-name=x: ")
    (work / "job.sh").write_text("#!/bin/bash\nsrun --container-image=alpine true\n")
    assert cli.main(["env", "from-pyxis", "job.sh"]) == 0
    assert capsys.readouterr().out.startswith('image = "alpine"\n')
    assert cli.main(["env", "from-enroot", "job.sh"]) == 1
    assert cli.main(["env", "from-enroot", "enroot", "start", "--rw", "./x.sqsh", "sh"]) == 0
    assert capsys.readouterr().out == 'image = "./x.sqsh"\nwritable = true\nhome = false\n'
    assert cli.main(["env", "from-pyxis"]) == 2


def test_export(work: Path, client: Client, capsys: Captured) -> None:
    assert cli.main(["env", "export", "--to", "podman", "x.toml", "--", "sh", "-c", "echo $A"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("podman run --rm ")
    assert out.endswith(" sh -c 'echo $A'\n")
    assert "the host's variables" in err
