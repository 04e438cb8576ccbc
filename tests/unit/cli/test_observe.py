"""`piolet observe sources`: what a node has, and why the rest is missing."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from piolet.api import Place, Source, Unavailable
from piolet.cli import observe
from piolet.cli.main import main
from piolet.observe import choosing


class There(Source):
    """Tells all but one thing."""

    name, text = "there", "what is there"

    def open(self, place: Place) -> None:
        self.never = {"retries": "the driver has none"}


class Absent(Source):
    """Only root may read it."""

    name, text = "absent", "what is not there"
    needs = ("/sys/secret",)

    def open(self, place: Place) -> None:
        raise Unavailable("only root may read /sys/secret")


class Wrong(Source):
    """Fails."""

    name, text = "wrong", "what has a fault"

    def open(self, place: Place) -> None:
        raise RuntimeError("a bit")


@pytest.fixture
def sources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "classes", lambda without="": [There, Absent, Wrong])
    monkeypatch.setattr(observe, "_gpu", lambda: ("no driver", {}))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)


def test_each_source_has_its_state(sources: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "piolet.toml").write_text('[observe]\nwithout = "host"\n')
    assert main(["--config", str(tmp_path / "piolet.toml"), "observe", "sources"]) == 0
    out = capsys.readouterr().out
    assert "gpu         -  no driver\n" in out
    assert "host        -  [observe] without leaves it out\n" in out
    assert "there       what is there\n            without retries: the driver has none\n" in out
    assert "absent      -  only root may read /sys/secret; pioletd has it opened for its sampler\n" in out
    assert "wrong       -  a bit\n" in out
    assert out.endswith("1 source of 5 on this node\n")


def test_as_json(sources: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "piolet.toml").write_text("")
    assert main(["--config", str(tmp_path / "piolet.toml"), "observe", "sources", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["version"] == 1
    assert {one["name"]: one["tells"] for one in said["sources"]} == {
        "gpu": False, "host": True, "there": True, "absent": False, "wrong": False,
    }  # fmt: skip


def test_the_real_ones_of_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever this machine has, each source says something, and none fails."""
    told = observe.look()
    assert [one.name for one in told] == list(choosing.NAMES)
    assert not [one for one in told if "Error" in one.why], told
