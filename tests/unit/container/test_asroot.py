"""What a container has in which the user is root: the filter for its tasks, and a word to apt where there is apt."""

from __future__ import annotations

from pathlib import Path

import pytest
from piolet.base.errors import ContainerError
from piolet.container import asroot
from piolet.system import pretendroot


def test_the_filter_and_apts_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asroot, "FILTER", str(tmp_path / "filter"))
    monkeypatch.setattr(asroot, "APT_SETTINGS", str(tmp_path / "apt/99piolet"))
    asroot.write()
    assert (tmp_path / "filter").read_bytes() == pretendroot.program()
    assert not (tmp_path / "apt").exists()
    (tmp_path / "apt").mkdir()
    asroot.write()
    assert (tmp_path / "apt/99piolet").read_text() == 'APT::Sandbox::User "root";\n'


def test_no_room_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asroot, "FILTER", str(tmp_path / "none/filter"))
    with pytest.raises(ContainerError, match=r"cannot write .*none/filter in the container"):
        asroot.write()
