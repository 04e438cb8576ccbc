"""A command of Slurm's is asked: what it says, that it does not start, and that it never answers."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from piolet.base.errors import SlurmError
from piolet.slurm.asking import ask


def command(tmp_path: Path, text: str) -> str:
    path = tmp_path / "scontrol"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_what_it_says_and_how_it_shows_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_TIME_FORMAT", "relative")
    asked = [command(tmp_path, 'printf "$SLURM_TIME_FORMAT $1 \\377"; echo no >&2; read line && exit 0; exit 3'), "x"]
    assert ask(asked, "it") == (False, "relative x \ufffd", "no\n")
    assert ask(asked, "it", "standard") == (False, "standard x \ufffd", "no\n")
    assert ask([command(tmp_path, "exit 0")], "it") == (True, "", "")


def test_it_does_not_start_or_does_not_answer(tmp_path: Path) -> None:
    with pytest.raises(SlurmError) as missing:
        ask([str(tmp_path / "none")], "the topology")
    assert missing.value.message == f"cannot start {tmp_path}/none: No such file or directory"
    began = time.monotonic()
    path = command(tmp_path, "exec sleep 100")
    with pytest.raises(SlurmError) as late:
        ask([path], "the topology", limit_s=0.2)
    assert late.value.message == f"{path} did not tell the topology within 0.2 s"
    assert time.monotonic() - began < 60
