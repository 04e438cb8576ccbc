"""A store that cannot be opened, or could not be written: it is said at once, and what to do."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from piolet.base.errors import ConfigError, EventError
from piolet.central.store.database import StoreError, connect
from piolet.site.config import load


def test_a_store_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(EventError, match="there is no store"):
        connect(f"sqlite:///{tmp_path}/none.sqlite")
    with pytest.raises(StoreError, match="cannot be opened"):
        connect(f"sqlite:///{tmp_path}/no/none.sqlite", create=True)
    with pytest.raises(EventError, match="of another release"):
        (tmp_path / "empty.sqlite").touch()
        connect(f"sqlite:///{tmp_path}/empty.sqlite")
    with pytest.raises(StoreError) as caught:
        connect("postgresql+psycopg://user:geheim@127.0.0.1:1/x", create=True)
    assert "geheim" not in caught.value.render() and "hint: does it run" in caught.value.render()


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another account")
def test_a_store_of_another_account_is_not_begun_with() -> None:
    """As after a restore without chown: SQLite opens it, and would refuse each record."""
    with tempfile.TemporaryDirectory(prefix="piolet-store-") as name:  # where another account may go
        place = Path(name)
        path = place / "central.sqlite"
        connect(f"sqlite:///{path}", create=True).dispose()
        path.chmod(0o644)
        os.chown(place, 61301, 61301)
        said = opened_by(61301, path, create=True)
        assert "attempt to write a readonly database" in said
        assert f"hint: the directory and the file have to be of 61301: chown 61301 {place} {path}*" in said
        path.chmod(0o600)
        assert f"61301 may not read the store {path}\nhint: " in opened_by(61301, path, create=False)
        os.chown(path, 61301, 61301)
        assert opened_by(61301, path, create=True) == "opened\n"


OPEN = """
import sys
from piolet.base.errors import PioletError
from piolet.central.store.database import connect
try:
    connect(sys.argv[1], create=sys.argv[2] == "True")
    print("opened")
except PioletError as error:
    print(error.render())
"""


def opened_by(uid: int, path: Path, *, create: bool) -> str:
    """Return what a process of that account says of a store."""
    command = [sys.executable, "-I", "-c", OPEN, f"sqlite:///{path}", str(create)]
    return subprocess.run(
        command, user=uid, group=uid, extra_groups=(), capture_output=True, text=True, check=True, timeout=60, cwd="/"
    ).stdout


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("sqlite:///central.sqlite", "no file by its whole path"), ("sqlite://", "no file by its whole path"),
        ("sqlite:////var/lib/piolet-central/", "no file by its whole path"),
        ("/var/lib/piolet-central/central.sqlite", "no data base that it knows"), ("mysql://x@/y", "no data base"),
        ("postgresql+psycopg2://piolet:geheim@/y", "no data base"), ("postgres://piolet@/y", "no data base"),
        ("", "no data base"),
    ],
)  # fmt: skip
def test_an_address_that_is_none(url: str, error: str, tmp_path: Path) -> None:
    """It is said when the configuration is read: piolet config check."""
    file = tmp_path / "piolet.toml"
    file.write_text(f'[central]\nstore = "{url}"\n')
    with pytest.raises(ConfigError, match=error) as caught:
        load(file)
    assert caught.value.hint is not None and "sqlite:////" in caught.value.hint
    assert "geheim" not in caught.value.message


@pytest.mark.parametrize("url", ["sqlite:////x/y.sqlite", "postgresql://u@h/n", "postgresql+psycopg://u@/n?host=/run"])
def test_an_address_that_is_one(url: str, tmp_path: Path) -> None:
    file = tmp_path / "piolet.toml"
    file.write_text(f'[central]\nstore = "{url}"\n')
    assert load(file).central.store == url
