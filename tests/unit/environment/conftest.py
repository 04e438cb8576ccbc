"""A host, and definitions made there, with a resolver that knows one image."""

from __future__ import annotations

from pathlib import Path

import pytest
from piolet.environment.render import Rendered, render
from piolet.environment.settings import EnvironmentConfig
from piolet.images.info import ImageInfo
from piolet.submission.dependencies import Host

from tests.unit.environment.rendering import INFO, Render


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host({"HOME": f"{tmp_path}", "PATH": "/host/bin", "USER": "ada", "LC_ALL": "de_DE"}, str(tmp_path))


@pytest.fixture
def made(tmp_path: Path, host: Host) -> Render:
    def make(text: str, info: ImageInfo = INFO, **bases: str) -> Rendered:
        for name, base in bases.items():
            (tmp_path / f"{name}.toml").write_text(base)
        (tmp_path / "x.toml").write_text(text)
        return render("./x.toml", host, EnvironmentConfig(edf_path=()), lambda _: info)

    return make
