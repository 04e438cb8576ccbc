"""Files and directories of the service that cannot be used: which it is, and why."""

from __future__ import annotations

import dataclasses
import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest
from piolet.base.errors import ConfigError
from piolet.central.running import own_directory, secured
from piolet.central.settings import CentralConfig


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> CentralConfig:
    """One whose files are right."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificates")
    top = tmp_path_factory.mktemp("certificates")
    openssl = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-days", "2", "-subj", "/CN=head"]
    for name, secret in (("a", ["-nodes"]), ("b", ["-nodes"]), ("locked", ["-passout", "pass:geheim"])):
        command = [*openssl, *secret, "-keyout", f"{name}.key", "-out", f"{name}.pem"]
        subprocess.run(command, cwd=top, check=True, capture_output=True)
    return CentralConfig(trust="certificate", certificate=f"{top}/a.pem", key=f"{top}/a.key", authority=f"{top}/a.pem")


def test_right_ones(config: CentralConfig) -> None:
    found = secured(config)
    assert found is not None and found.verify_mode is ssl.CERT_REQUIRED
    assert secured(CentralConfig()) is None


@pytest.mark.parametrize("name", ["certificate", "key", "authority"])
def test_a_file_that_is_not_there(config: CentralConfig, name: str) -> None:
    other: dict[str, Any] = {name: "/nowhere"}
    with pytest.raises(ConfigError, match=rf"\[central\] {name}: /nowhere cannot be read: No such file") as caught:
        secured(dataclasses.replace(config, **other))
    assert "readable by" in str(caught.value.hint)


def test_a_setting_that_is_missing(config: CentralConfig) -> None:
    with pytest.raises(ConfigError, match="needs certificate, key and authority") as caught:
        secured(dataclasses.replace(config, authority=""))
    assert caught.value.hint


@pytest.mark.parametrize("key", ["b.key", "locked.key"])
def test_another_key_and_one_with_a_passphrase(config: CentralConfig, key: str) -> None:
    """Nobody is asked for it: a service that waits for a word at a terminal has hung."""
    top = Path(config.key).parent
    certificate = str(top / "locked.pem") if key == "locked.key" else config.certificate
    with pytest.raises(ConfigError, match="cannot be used"):
        secured(dataclasses.replace(config, certificate=certificate, key=str(top / key)))


def test_a_directory_of_its_own(tmp_path: Path) -> None:
    own_directory(str(tmp_path / "a" / "b"), "[central] archive")
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700 and not list((tmp_path / "a" / "b").iterdir())
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", Path("/proc/none")):
        with pytest.raises(ConfigError, match=rf"\[central\] archive: nothing can be written in {path}: ") as caught:
            own_directory(str(path), "[central] archive")
        assert f"ReadWritePaths={path}" in str(caught.value.hint)
