"""`piolet config`: the sample is the configuration's own definition, and reads back as the defaults."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from piolet.cli import config as cli
from piolet.cli.config import sample, show
from piolet.cli.main import main
from piolet.site import config

Captured = pytest.CaptureFixture[str]
ROOT = Path(__file__).resolve().parents[3]


def test_the_file_in_etc_is_the_sample() -> None:
    """etc/piolet.toml is generated: `piolet config sample > etc/piolet.toml`."""
    assert (ROOT / "etc" / "piolet.toml").read_text("utf-8") == sample()


def test_the_sample_says_the_defaults() -> None:
    """Every setting is there with its default, commented out; with the comment signs gone it reads back."""
    text = re.sub(r"^#(?=[a-z_]+ = )", "", sample(), flags=re.MULTILINE)
    assert config.from_dict(tomllib.loads(text), "sample") == config.Config()
    assert config.from_dict(tomllib.loads(sample()), "sample") == config.Config()


def test_show_reads_back() -> None:
    """What show prints is a configuration with the same meaning."""
    given = config.from_dict({"environment": {"edf_path": ["/a", "/b c"]}, "node": {"image_idle_s": 5}}, "test")
    assert config.from_dict(tomllib.loads(show(given)), "shown") == given


def test_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 0 or 1, and a sentence with the nearest known name."""
    path = tmp_path / "piolet.toml"
    path.write_text("[node]\nverbose = true\n")
    assert main(["--config", str(path), "config", "check"]) == 0
    assert capsys.readouterr().out == f"{path} is valid\n"
    path.write_text("[node]\nverbos = true\n")
    assert main(["--config", str(path), "config", "check"]) == 1
    assert "did you mean 'verbose'?" in capsys.readouterr().err


def test_check_without_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    """A machine without the file has the defaults, and nobody is to think that there is one."""
    for module in (config, cli):
        monkeypatch.setattr(module, "DEFAULT_PATH", tmp_path / "none.toml")
    assert main(["config", "check"]) == 0
    assert capsys.readouterr().out == f"there is no {tmp_path}/none.toml; the defaults hold\n"


def test_the_sample_needs_no_right_file(tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "piolet.toml").write_text("[node\n")
    assert main(["--config", str(tmp_path / "piolet.toml"), "config", "sample"]) == 0
    assert capsys.readouterr().out == sample()
