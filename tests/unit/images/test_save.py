"""A root as an image: a SquashFS file that says what its base said, and an archive that the importer takes."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path

import pytest
from piolet.base.errors import ImageError
from piolet.images import archive, client, enroot, manifest, save, saved
from piolet.images.limits import TooSlow
from piolet.images.save import Base
from piolet.images.saved import Root
from piolet.images.settings import ImagesConfig

PROGRAM = shutil.which("mksquashfs") or "/usr/bin/mksquashfs"
CONFIG = ImagesConfig(mksquashfs=PROGRAM)
BASE = Base(("PATH=/bin", 'Q="q"', "B= b "), ("/entry", "a b"), "/work", {"org.x": "1"})
needs_squashfs = pytest.mark.skipif(not shutil.which("unsquashfs"), reason="needs squashfs-tools")


@pytest.fixture
def root(tmp_path: Path) -> Root:
    made = tmp_path / "root"
    (made / "etc").mkdir(parents=True)
    (made / "etc" / "rc").write_text("old")
    (made / "data").write_bytes(os.urandom(300_000))
    return Root(os.open(made, os.O_RDONLY))


@needs_squashfs
def test_a_file_says_what_its_base_said(root: Root, tmp_path: Path) -> None:
    count, warnings = save.to_file(root, BASE, str(tmp_path / "x.sqsh"), CONFIG, lambda _: None, force=False)
    assert (count.bytes, warnings) == (300_000, [])
    info = client.resolve(str(tmp_path / "x.sqsh"), CONFIG, pull=False, progress=lambda _: None)
    assert info.env == {"PATH": "/bin", "Q": '"q"', "B": " b "}
    assert (info.entrypoint, info.workdir, info.warnings) == (("/entry", "a b"), "/work", ())


@needs_squashfs
def test_a_base_that_says_nothing_changes_nothing(root: Root, tmp_path: Path) -> None:
    import subprocess

    save.to_file(root, Base(), str(tmp_path / "x.sqsh"), CONFIG, lambda _: None, force=False)
    words = ["unsquashfs", "-cat", str(tmp_path / "x.sqsh"), "etc/rc"]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout == "old"


def test_files_are_not_compared_with_each_other(root: Root, tmp_path: Path) -> None:
    """For a million small ones that takes ten minutes; what is there twice is stored twice."""
    again = (tmp_path / "root" / "data").read_bytes()
    (tmp_path / "root" / "again").write_bytes(again)
    save.to_file(root, Base(), str(tmp_path / "x.sqsh"), CONFIG, lambda _: None, force=False)
    assert (tmp_path / "x.sqsh").stat().st_size > 1.5 * len(again)


@pytest.mark.parametrize(
    ("base", "said"),
    [
        (Base(("A=1\n2",)), "its variable A cannot be kept"),
        (Base(("my-name=1",)), "its variable my-name cannot be kept"),
        (Base(workdir='/a"b'), "its working directory cannot be kept"),
        (Base(entrypoint=("/x", "a\nb")), "its entrypoint cannot be kept"),
    ],
)
def test_what_a_file_cannot_say_is_told(base: Base, said: str) -> None:
    _, warnings = enroot.write(base.env, base.entrypoint, base.workdir, "x.sqsh")
    assert warnings == [f"x.sqsh: {said} in a file of this kind"]


@pytest.mark.parametrize("entrypoint", [(), ("/x",), ("/x", "it's", "a b", '"', "$HOME", "", "\\", "`x`")])
@pytest.mark.parametrize("workdir", [None, "/", "/a b"])
def test_what_is_written_is_read(entrypoint: tuple[str, ...], workdir: str | None) -> None:
    files, warnings = enroot.write(("A=b c", "E="), entrypoint, workdir, "x")
    read = enroot.read({path.decode(): data.decode() for path, data in files.items()}, "x")
    assert (read.env, read.workdir, read.warnings) == (("A=b c", "E="), workdir, ())
    assert (read.entrypoint, warnings) == (entrypoint, [])


def test_an_archive_is_taken(root: Root, tmp_path: Path) -> None:
    with open(tmp_path / "x.tar", "w+b") as file:
        count = save.to_archive(root, BASE, file.fileno(), CONFIG, lambda _: None)
    assert count.names == 3
    found = os.open(tmp_path / "x.tar", os.O_RDONLY)
    taken = archive.read(found, "docker-archive", str(tmp_path / "blobs"), "x", 1 << 30, lambda _: None)
    raw = (tmp_path / "blobs" / taken.config.hex).read_bytes()
    config = manifest.parse_config(raw, "x", manifest.machine_architecture(platform.machine()))
    assert (config.env, config.entrypoint, config.workdir) == (BASE.env, BASE.entrypoint, BASE.workdir)
    assert config.labels == BASE.labels and len(config.diff_ids) == len(taken.layers) == 1
    assert config.diff_ids[0] == taken.layers[0].digest


@needs_squashfs
def test_one_that_takes_too_long_is_given_up(root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from piolet.images import limits

    monkeypatch.setattr(limits, "PATIENCE_S", 0)
    monkeypatch.setattr(limits, "_CHECK_S", 0.05)
    read, _ = os.pipe()
    real = saved.write

    def slow(*arguments: object) -> None:
        real(*arguments)  # type: ignore[arg-type]
        os.read(read, 1)  # for ever

    monkeypatch.setattr(saved, "write", slow)
    with pytest.raises(TooSlow, match="given up"):
        save.to_file(root, Base(), str(tmp_path / "x.sqsh"), CONFIG, lambda _: None, force=False)
    assert sorted(os.listdir(tmp_path)) == ["root"]


def test_a_program_that_fails_leaves_nothing(root: Root, tmp_path: Path) -> None:
    config = ImagesConfig(mksquashfs="/bin/false")
    with pytest.raises(ImageError, match="mksquashfs"):
        save.to_file(root, Base(), str(tmp_path / "x.sqsh"), config, lambda _: None, force=False)
    assert sorted(os.listdir(tmp_path)) == ["root"]
