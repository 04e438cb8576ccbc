"""`piolet env save` and `env keep`: what is asked for, and what is said when it fails."""

from __future__ import annotations

import io
import os
import sys
import syslog
from pathlib import Path

import pytest
from piolet.base.errors import ImageError, WireError
from piolet.cli import keep
from piolet.cli.keep import Order
from piolet.container.plan import PlannedSave
from piolet.container.view import Seen
from piolet.site.config import Config
from piolet.transport import packets


@pytest.mark.parametrize(
    ("target", "wanted"),
    [
        ("./x.sqsh", PlannedSave("", file="{cwd}/x.sqsh")),
        ("/a/x.squashfs", PlannedSave("", file="/a/x.squashfs")),
        ("x.sqsh", PlannedSave("", file="{cwd}/x.sqsh")),
        ("mine", PlannedSave("", name="mine")),
        ("localhost/mine:1", PlannedSave("", name="mine:1")),
    ],
)
def test_targets(target: str, wanted: PlannedSave, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDF_IMAGESTORE", raising=False)
    found = keep._wanted(target)
    assert (found.file, found.name) == (wanted.file.replace("{cwd}", os.getcwd()), wanted.name)


@pytest.mark.parametrize("target", ["./x.tar", "/x", "a b", "x@sha256:" + "0" * 64])
def test_targets_that_are_none(target: str) -> None:
    with pytest.raises(ImageError):
        keep._wanted(target)


def given(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_what_is_no_order_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, b'{"save": {"step": "1.0", "file": 3}}')
    with pytest.raises(WireError):
        keep.keep(Config())


def test_a_failure_at_the_end_is_a_warning_and_a_line_in_the_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    told: list[str] = []
    monkeypatch.setattr(syslog, "syslog", lambda _, text: told.append(text))
    monkeypatch.setenv("HOME", "/elsewhere")

    def fail(*_: object) -> None:
        raise ImageError("it\nis\x1b[2J full", "make room")

    monkeypatch.setattr(keep, "_keep", fail)
    order = Order(PlannedSave("7.0", file="/x.sqsh", home=str(tmp_path)), Seen([], False))
    given(monkeypatch, packets.encode(order))
    assert keep.keep(Config()) == 1
    said = capsys.readouterr().err
    assert said == "piolet: warning: the container was not saved: it\nis?[2J full\nhint: make room\n"
    assert told == [f"step 7.0 of uid {os.getuid()} is not saved: it?is?[2J full"]


def test_a_log_that_takes_nothing_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    read, _ = os.pipe()
    monkeypatch.setattr(keep, "_LATE_S", 1)
    monkeypatch.setattr(syslog, "syslog", lambda *_: os.read(read, 1))
    keep._log(PlannedSave("7.0"), ImageError("x"))


def test_a_failure_of_the_command_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device", "/x")

    monkeypatch.setattr(keep, "_keep", fail)
    given(monkeypatch, packets.encode(Order(PlannedSave("7.0", file="/x.sqsh"))))
    with pytest.raises(ImageError, match="No space left on device: /x"):
        keep.keep(Config())


def test_an_archive_is_removed_whatever_happens(tmp_path: Path) -> None:
    wanted = PlannedSave("7.0", name="x", home=str(tmp_path))
    with pytest.raises(ZeroDivisionError), keep._archive(wanted) as path:
        Path(path).touch()
        assert Path(path).parent.stat().st_mode & 0o777 == 0o700
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == []


def test_the_store_is_the_one_that_was_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDF_IMAGESTORE", "/before")
    with keep._store(""):
        assert "EDF_IMAGESTORE" not in os.environ
    with keep._store("/own"):
        assert os.environ["EDF_IMAGESTORE"] == "/own"
    assert os.environ["EDF_IMAGESTORE"] == "/before"
