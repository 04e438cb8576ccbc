"""Where the service is, as a configuration says it."""

from __future__ import annotations

from pathlib import Path

import pytest
from piolet.base.errors import ConfigError
from piolet.site.config import load


def url(tmp_path: Path, text: str) -> str:
    path = tmp_path / "piolet.toml"
    path.write_text(f"[central]\nurl = '{text}'\n")
    return load(path).central.url


@pytest.mark.parametrize(
    "text",
    ["", "http://head:6828", "https://head.site.org:6828/", "http://10.1.0.7:6828", "http://[fe80::1]:6828", "http://h",
     "unix:/run/piolet-central/central.sock"],
)  # fmt: skip
def test_an_address(tmp_path: Path, text: str) -> None:
    assert url(tmp_path, text) == text


@pytest.mark.parametrize(
    "text",
    ["head:6828", "ftp://head", "http://", "http://:6828", "http:///x", "http://head:port", "http://head:0",
     "http://head:65536", "http://[::1", "http://[zz]:1", "http://head:6828/v1", "http://head:6828?x", "http://a b:1",
     "http://root:pw@head:6828", "unix:/", "unix://run/x", "unix:run/x"],
)  # fmt: skip
def test_none(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError) as raised:
        url(tmp_path, text)
    assert f"'{text}' is no address of the service" in raised.value.message and raised.value.hint
