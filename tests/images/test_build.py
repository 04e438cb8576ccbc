"""Builds from a Containerfile with a stand-in for buildah: as whom it runs, what it is told, and what is left."""

from __future__ import annotations

import errno
import os
import re
import tempfile
import tomllib
from pathlib import Path

import pytest
from piolet.base.errors import ImageError
from piolet.images import build
from piolet.images.settings import ImagesConfig
from piolet.system import linux

STAND_IN = """#!/bin/sh
echo "$@" >>{log}
id -u >>{log}
mkdir -p "$TMPDIR/closed/in" && : >"$TMPDIR/closed/in/file" && chown 5:6 "$TMPDIR/closed" && chmod 0 "$TMPDIR/closed"
echo of buildah
case "$*" in *push*) : >{archive} ;; *) exit {status} ;; esac
"""


@pytest.fixture
def todo(tmp_path: Path) -> build.Recipe:
    (tmp_path / "Dockerfile").write_text("FROM x\n")
    return build.recipe(str(tmp_path), None, ["A=1 2"])


def run(tmp_path: Path, todo: build.Recipe, monkeypatch: pytest.MonkeyPatch, status: int = 0) -> list[str]:
    """Build with the stand-in; return what it noted: its words, and its user."""
    rooms, log = tmp_path / "rooms", tmp_path / "log"
    rooms.mkdir()
    monkeypatch.setenv("TMPDIR", str(rooms))
    monkeypatch.setattr(tempfile, "tempdir", None)
    program = tmp_path / "buildah"
    program.write_text(STAND_IN.format(log=log, archive=tmp_path / "image.tar", status=status))
    program.chmod(0o755)
    try:
        build.build(todo, str(tmp_path / "image.tar"), ImagesConfig(buildah=str(program)))
    finally:
        assert list(rooms.iterdir()) == []
    return log.read_text().splitlines()


def test_it_is_root_of_one_id_and_nothing_is_left(
    tmp_path: Path, todo: build.Recipe, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    said = run(tmp_path, todo, monkeypatch)
    assert said[1::2] == ["0", "0"]
    assert f"--file {tmp_path}/Dockerfile" in said[0] and said[0].endswith(f" {tmp_path}")
    assert "--build-arg A=1 2" in said[0] and "--isolation chroot" in said[0] and "--storage-driver vfs" in said[0]
    assert f"oci-archive:{tmp_path}/image.tar" in said[2]
    shown = capfd.readouterr()
    assert shown.out == "" and shown.err == "of buildah\nof buildah\n"


def test_a_build_that_fails(tmp_path: Path, todo: build.Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImageError, match="the build failed with status 3"):
        run(tmp_path, todo, monkeypatch, status=3)
    assert not (tmp_path / "image.tar").exists()


def test_there_is_no_buildah(tmp_path: Path, todo: build.Recipe) -> None:
    with pytest.raises(ImageError, match=f"is not there on {os.uname().nodename}"):
        build.build(todo, str(tmp_path / "image.tar"), ImagesConfig(buildah="/not/there"))


def test_users_may_make_no_namespace(tmp_path: Path, todo: build.Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: int) -> None:
        raise OSError(errno.ENOSPC, "as the test wants it", "unshare")

    monkeypatch.setattr(linux, "unshare", refused)
    with pytest.raises(ImageError, match=r"root of a user namespace on .*: No space left") as caught:
        build.build(todo, str(tmp_path / "image.tar"), ImagesConfig(buildah="/bin/true"))
    assert caught.value.hint and "sysctl" in caught.value.hint


def test_what_is_wrong_with_a_recipe(tmp_path: Path) -> None:
    for context, file, arguments, message in (
        (f"{tmp_path}/none", None, [], "is not a directory"),
        (str(tmp_path), None, [], f"there is no {tmp_path}/Containerfile and no {tmp_path}/Dockerfile"),
        (str(tmp_path), f"{tmp_path}/own", [], f"there is no {tmp_path}/own"),
    ):
        with pytest.raises(ImageError, match=re.escape(message)):
            build.recipe(context, file, arguments)
    (tmp_path / "Containerfile").touch()
    with pytest.raises(ImageError, match="the build argument 'A' has no value"):
        build.recipe(str(tmp_path), None, ["A"])
    (tmp_path / "Dockerfile").touch()
    assert build.recipe(str(tmp_path), None, []).file == f"{tmp_path}/Containerfile"


def test_the_sites_registries_stay(tmp_path: Path) -> None:
    site = tmp_path / "registries.conf"
    assert tomllib.loads(build.registries([], site)) == {"unqualified-search-registries": ["docker.io"]}
    site.write_text('unqualified-search-registries = ["own:1"]\n[[registry]]\nlocation = "a:1"\nblocked = true\n')
    said = tomllib.loads(build.registries(["a:1", "b:2"], site))
    assert said["unqualified-search-registries"] == ["own:1"]
    assert said["registry"] == [{"location": "a:1", "blocked": True}, {"location": "b:2", "insecure": True}]
