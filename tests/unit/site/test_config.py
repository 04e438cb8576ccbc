"""The site's configuration."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from piolet.base.errors import ConfigError
from piolet.config import schema
from piolet.node.settings import NodeConfig
from piolet.samples.choose import NAMES
from piolet.samples.settings import ScoreConfig
from piolet.site import config


def refusal(path: Path) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        config.load(path)
    return caught.value


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "piolet.toml"


def test_an_empty_file_gives_the_defaults(file: Path) -> None:
    file.touch()
    assert config.load(file) == config.Config()


def test_no_default_file_gives_the_defaults(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "DEFAULT_PATH", file)
    assert config.load() == config.Config()
    file.write_text("[environment]\nmount_home = false\n")
    assert config.load().environment.mount_home is False


def test_settings_of_every_type(file: Path) -> None:
    file.write_text(
        '[environment]\nedf_path = ["/a", "/b"]\nunknown_keys = "warn"\n[images]\nstore = "/s"\npull_timeout_s = 5\n'
    )
    found = config.load(file)
    assert found.environment.edf_path == ("/a", "/b")
    assert found.environment.unknown_keys == "warn"
    assert (found.images.store, found.images.pull_timeout_s) == ("/s", 5)
    assert found.node == NodeConfig()


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("[enviroment]\n", "unknown section [enviroment]", "did you mean 'environment'?"),
        ("[zzz]\n", "unknown section [zzz]", "known here: "),
        ("environment = 1\n", "[environment] must be a table", None),
        ("[environment]\nedfpath = []\n", "[environment]: unknown key 'edfpath'", "did you mean 'edf_path'?"),
        ('[environment]\nmounts = ["a:/b"]\n', "mounts: 'a:/b' does not begin with an absolute path", None),
        ('[environment]\nmounts = ["tmpfs:/b"]\n', "mounts: 'tmpfs:/b' does not begin with an absolute path", None),
        ('[environment]\nmounts = ["/a:/b:up"]\n', "'up'", "the flags are"),
        ('[environment]\nedf_path = "/a"\n', "edf_path must be an array of strings", None),
        ("[environment]\nedf_path = [1]\n", "edf_path must be an array of strings", None),
        ('[environment]\nmount_home = "yes"\n', "mount_home must be true or false, not 'yes'", None),
        ('[environment]\nunknown_keys = "maybe"\n', "unknown_keys must be one of 'error', 'warn', not 'maybe'", None),
        ("[images]\nstore = 1\n", "store must be a string, not 1", None),
        ("[images]\npull_timeout_s = true\n", "pull_timeout_s must be a whole number, not True", None),
        ("[images]\npull_timeout_s = -1\n", "pull_timeout_s must be at least 1, not -1", None),
        ("[node]\nimage_idle_s = -1\n", "image_idle_s must be at least 0, not -1", None),
        ('[images]\nstore = "images"\n', "[images] store: 'images' is not an absolute path", None),
        ('[vet]\nevals = ["/a", "b"]\n', "[vet] evals: 'b' is not an absolute path", None),
        ('[score]\ncalibration = "b"\n', "[score] calibration: 'b' is not an absolute path", None),
        ('[images]\ncompression = "zst"\n', "compression must be one of 'zstd', 'lz4', ", None),
        ('[images]\ninsecure_registries = ["http://a:5000"]\n', "'http://a:5000' is not a registry", "host:port"),
        ('[score]\ninterval = "x"\n', "[score] interval: 'x' is no interval from 100ms to 1h", "write for example"),
        ('[score]\ncollector = "gpu"\n', "collector must be one of 'auto', ", None),
        ("[node]\nbuild_timeout_s = 0\n", "[node] build_timeout_s must be at least 1, not 0", None),
        ("[images]\npull_timeout_s = 9999999999\n", "pull_timeout_s must be at most 2147483647, not 9999999999", None),
        ('[images]\naccount = ""\n', "[images] account: it is empty", None),
        (f'[node]\nsocket = "/{"s" * 107}"\n', "is too long for a socket: 107 bytes at most", None),
        ('[score]\nprometheus = "9417"\n', "[score] prometheus: '9417' is not an address and a port", "127.0.0.1:9417"),
        ("[images\n", "is not valid TOML", None),
        ("[images]\nx = " + "9" * 5000, "is not valid TOML", None),
        ("x = " + "[" * 100_000, "is not valid TOML", None),
    ],
)
def test_refusals(file: Path, text: str, message: str, hint: str | None) -> None:
    file.write_text("\n# A comment.\r\n" + text)
    error = refusal(file)
    assert message in error.message
    line = 3 if text.startswith(("[zzz]", "[enviroment]", "environment", "[images\n")) else 4
    place = f"{file} is not" if "valid TOML" in message else f"{file}:{line}: "
    assert error.message.startswith(place)
    assert hint is None or hint in (error.hint or "")


def test_the_values_of_others_are_theirs() -> None:
    """What a setting may be is what its reader knows."""
    kinds = get_type_hints(ScoreConfig)
    assert get_args(kinds["collector"]) == tuple(NAMES)


def test_every_default_is_a_value_that_may_be_set(file: Path) -> None:
    from piolet.cli.config import show

    file.write_text(show(config.Config()))
    assert config.load(file) == config.Config()


def test_a_byte_order_mark_is_skipped(file: Path) -> None:
    file.write_bytes(b'\xef\xbb\xbf[images]\nstore = "/s"\n')
    assert config.load(file).images.store == "/s"


def test_a_default_is_where_the_distribution_has_the_program(tmp_path: Path) -> None:
    places = [str(tmp_path / name) for name in ("bin", "sbin")]
    assert schema.found(*places, usual="/usr/bin/it") == "/usr/bin/it"
    (tmp_path / "sbin").touch(0o755)
    assert schema.found(*places, usual="/usr/bin/it") == places[1]
    (tmp_path / "bin").touch(0o755)
    assert schema.found(*places, usual="/usr/bin/it") == places[0]


def test_files_that_cannot_be_read(file: Path) -> None:
    assert refusal(file).message == f"the configuration file {file} does not exist"
    file.write_bytes(b"\xff")
    assert f"cannot read the configuration file {file}" in refusal(file).message
    assert "cannot read the configuration file" in refusal(file.parent).message


def test_every_setting_says_what_it_is_for() -> None:
    for section in dataclasses.fields(config.Config):
        for setting in dataclasses.fields(section.default_factory()):  # type: ignore[misc]
            assert setting.metadata["help"].endswith("."), setting.name
