"""`piolet doctor`: faults of the configuration."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from piolet.cli.main import main
from piolet.doctor import BAD, Machine, configuration
from piolet.site.config import Config

from tests.unit.doctor.conftest import bad, only


def test_the_configuration(machine: Machine, tmp_path: Path) -> None:
    """A broken one is one finding, and the other checks go on with the defaults."""
    path = tmp_path / "piolet.toml"
    path.chmod(0o640)
    only(machine, "configuration", f"{path} may not be read by users", f"chmod 0644 {path}")
    path.write_text("[images]\nstroe = 1\n")
    config, fault = configuration.read(path)
    assert config == Config() and fault is not None
    assert (fault.state, f"{path}:2" in fault.text, "store" in fault.hint) == (BAD, True, True)
    only(dataclasses.replace(machine, config_fault=fault), "configuration", "unknown key 'stroe'", "did you mean")
    path.unlink()
    assert not bad(machine)


def test_the_command_goes_on_where_the_configuration_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "piolet.toml").write_text("[images\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["--config", str(tmp_path / "piolet.toml"), "doctor"]) == 1
    out, err = capsys.readouterr()
    assert out.startswith(f"bad      configuration: {tmp_path}/piolet.toml") and "skipped  plugins" in out and not err
