"""Requirements of a protocol are installed once, and judge nobody where they cannot be."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from piolet.api import Inconclusive
from piolet.vet import requirements

from tests.support.wheel import wheel


def test_requirements_are_installed_once(tmp_path: Path) -> None:
    wheel(tmp_path / "wheels", "piolettestpkg")
    cached = str(tmp_path / "cache")
    wanted = (("piolettestpkg", "--no-index", "--find-links", str(tmp_path / "wheels")), ("numpy",))
    paths = requirements.resolve(cached, wanted, "", 60.0)
    assert (Path(paths[0]) / "piolettestpkg.py").exists()
    assert not (Path(paths[0]) / "numpy").exists()  # this interpreter has it
    (tmp_path / "wheels" / "piolettestpkg-1.0-py3-none-any.whl").unlink()
    started = time.monotonic()
    assert requirements.resolve(cached, tuple(reversed(wanted)), "", 60.0) == paths
    assert time.monotonic() - started < 0.1


def test_requirements_without_a_network_or_time(tmp_path: Path) -> None:
    wanted = (("piolettestpkg",),)
    with pytest.raises(Inconclusive, match="cannot install piolettestpkg"):
        requirements.resolve(str(tmp_path), wanted, "http://127.0.0.1:1/simple", 60.0)
    with pytest.raises(Inconclusive, match="too long"):
        requirements.resolve(str(tmp_path), wanted, "http://127.0.0.1:1/simple", 0.0)
    assert not [one for one in tmp_path.iterdir() if not one.name.endswith(".lock")]
    with pytest.raises(Inconclusive, match="cannot install requirements in"):
        requirements.resolve("/proc/none", wanted, "", 1.0)
