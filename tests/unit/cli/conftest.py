"""An image client put in the place of ours, and a directory of a user's with definition files."""

from __future__ import annotations

import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import pytest
from piolet import images
from piolet.images.info import Image, ImageInfo
from piolet.site import config

DIGEST = "sha256:" + "b" * 64


class Client(types.ModuleType):
    """Stands for piolet.images.client; `failure` is raised when it is set."""

    def __init__(self) -> None:
        super().__init__("piolet.images.client")
        self.failure: Exception | None = None
        self.asked: list[tuple[str, bool]] = []
        self.said = ["pulling: 1 of 1 layers"]

    def resolve(
        self, reference: str, settings: config.Config, *, pull: bool, progress: Callable[[str], None]
    ) -> ImageInfo:
        """Answer for one image."""
        self.asked.append((reference, pull))
        if self.failure is not None:
            raise self.failure
        for text in self.said if pull else ():
            progress(text)
        return ImageInfo(Image(reference, "site", DIGEST), env={"PATH": "/image/bin"})


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    fake = Client()
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    monkeypatch.setattr(images, "client", fake, raising=False)
    return fake


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, client: Client) -> Path:
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", f"{tmp_path}/home")
    for name in ("XDG_CACHE_HOME", "XDG_STATE_HOME", "EDF_PATH", "EDF_IMAGESTORE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "x.toml").write_text('image = "img"\nmounts = ["/tmp"]\n[env]\nA = "${PATH}"\n')
    (tmp_path / "bad.toml").write_text('imgae = "img"\n')
    age(tmp_path)
    return tmp_path


def age(directory: Path) -> None:
    """Wait until the files of `directory` count as settled; a change time cannot be set back."""
    newest = max(path.stat().st_ctime_ns for path in directory.glob("*.toml"))
    while time.time_ns() - newest < 60_000_000:
        pass


Captured = pytest.CaptureFixture[str]
