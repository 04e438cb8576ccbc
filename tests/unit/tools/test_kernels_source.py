"""Kernels by apt: what was cut off is no kernel; what cannot be had is said, and is no failure of `make test`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tools.kernels import guest, ready, source
from tools.kernels.source import Kernel, UnavailableError, fetch, is_there

KERNEL = Kernel("6.1", "bookworm")
# Stand-ins that leave in the directory what the real ones would.
APT_GET = '[ "${*#*download}" = "$*" ] || touch linux-image-6.1.0-1-amd64_1.deb'
APT_CACHE = "echo '  Depends: linux-image-6.1.0-1-amd64'"
DPKG = """[ "$1" = -x ] || { echo amd64; exit; }
mkdir -p "$3/boot" "$3/lib/modules/6.1.0-1-amd64/kernel" && touch "$3/boot/vmlinuz-6.1.0-1-amd64"
"""


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of programs that come first; the real ones of apt are not reached."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, script in (("apt-get", APT_GET), ("apt-cache", APT_CACHE), ("dpkg", DPKG)):
        write(programs / name, script)
    (tmp_path / "keyring").touch()
    monkeypatch.setattr(source, "KEYRING", tmp_path / "keyring")
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return programs


def write(program: Path, script: str) -> None:
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def test_a_kernel_is_fetched_once(apt: Path, tmp_path: Path) -> None:
    assert fetch(KERNEL, tmp_path).release == "6.1.0-1-amd64" and is_there(KERNEL, tmp_path)
    write(apt / "apt-get", "exit 1")
    assert fetch(KERNEL, tmp_path).image.is_file()
    assert [path.name for path in (tmp_path / "6.1").iterdir()] == ["root"]


def test_what_was_cut_off_is_no_kernel(apt: Path, tmp_path: Path) -> None:
    write(apt / "dpkg", f"{DPKG}\necho 'no space left' >&2; exit 2")
    with pytest.raises(UnavailableError, match="dpkg failed: no space left"):
        fetch(KERNEL, tmp_path)
    assert not is_there(KERNEL, tmp_path)
    write(apt / "dpkg", DPKG)
    fetch(KERNEL, tmp_path)
    assert is_there(KERNEL, tmp_path) and not (tmp_path / "6.1/coming").exists()


def test_a_mirror_that_does_not_go_on(apt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "DOWNLOAD_S", 0.2)
    write(apt / "apt-get", "exec sleep 60")
    with pytest.raises(UnavailableError, match=r"apt-get was not done after 0\.2 s"):
        fetch(KERNEL, tmp_path)


def test_a_mirror_that_is_not_there(tmp_path: Path) -> None:
    """By the real apt."""
    if not source.KEYRING.exists():
        pytest.skip(f"{source.KEYRING} is not there")
    with pytest.raises(UnavailableError, match=r"^6\.1: apt-get failed: E: Failed to fetch http://127\.0\.0\.1:9/"):
        fetch(KERNEL, tmp_path, "http://127.0.0.1:9/debian")
    assert not is_there(KERNEL, tmp_path)


def test_make_test_goes_on_without_it(
    apt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("PIOLET_TEST_GUEST", raising=False)
    monkeypatch.setenv(ready.SWITCH, "1")
    monkeypatch.setattr(ready, "WORK", tmp_path / "kernels")
    monkeypatch.setattr(ready, "_NOTE", tmp_path / "kernels/left-out")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(guest, "missing", list)
    works = (apt / "apt-get").read_text()
    write(apt / "apt-get", "echo 'E: no such host' >&2; exit 100")
    assert ready.main() == 0
    assert ready.missing() == "6.1: apt-get failed: E: no such host"
    assert f"is not booted: {ready.missing()}" in capsys.readouterr().out
    (apt / "apt-get").write_text(works)
    assert ready.main() == 0 and ready.missing() == ""
    assert "not booted" not in capsys.readouterr().out
    monkeypatch.setenv(ready.SWITCH, "0")
    assert ready.main() == 0 and ready.missing() == "BOOT=0 leaves it out"
