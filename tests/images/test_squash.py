"""Real SquashFS files: what is in them, and that the same layers always give the same bytes."""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import subprocess
import time
from pathlib import Path

import pytest
from piolet.base.errors import ImageError
from piolet.images import limits
from piolet.images import manifest as documents
from piolet.images.squash import Squasher, layers_of, merge, squash
from piolet.node.root import devicemapper

from tests.support import oci
from tests.support.oci import Entry, device, file, folder, hardlink, symlink, whiteout
from tests.support.waiting import wait_until


def make(room: Path, name: str, layers: list[list[Entry]], program: str = "mksquashfs") -> Path:
    """Write `layers` to a SquashFS file; return it."""
    image = room / f"{name}.image"
    oci.build(image, layers)
    manifest = documents.parse_manifest((image / "manifest.json").read_bytes(), name)
    config = documents.parse_config((image / manifest.config.hex).read_bytes(), name, oci.ARCHITECTURE)
    places = layers_of(manifest, config, str(image))
    tree = merge(places, config, lambda _: None)
    out = room / f"{name}.sqsh"
    squash(tree, places, str(out), Squasher(program, "zstd"), lambda _: None)
    return out


def unpack(room: Path, sqsh: Path) -> Path:
    subprocess.run(["unsquashfs", "-q", "-n", "-d", room / "out", sqsh], check=True, stdout=subprocess.DEVNULL)
    return room / "out"


def test_what_is_in_it(room: Path) -> None:
    lower = [
        folder("./", 0o711, mtime=1_500_000_000),
        folder("usr/bin", mtime=1_600_000_001),
        symlink("bin", "usr/bin"),
        file("usr/bin/su", b"su", 0o4755),
        file("shadow", b"shadow", 0),
        file("a", b"first"),
        file("old", b"old"),
        device("null"),
        symlink("away", "../../../etc/passwd"),
        symlink("absolute", "/etc/passwd"),
        file("\udcff\udcfe", b"bytes"),
        file("new\nline 'quoted' \\ back*[?]", b"odd"),
        file("/".join("deep" + "n" * 90 for _ in range(4)), b"deep"),
        file("negative", b"", mtime=-5),
    ]
    upper = [file("bin/tool", b"tool", 0o755), hardlink("b", "a"), whiteout("a"), whiteout("old"), hardlink("c", "b")]
    out = unpack(room, make(room, "x", [lower, upper]))
    found = {os.fsencode(path.relative_to(out)) for path in out.rglob("*") if not path.is_dir() or path.is_symlink()}
    assert found == {
        b"usr/bin/tool",
        b"usr/bin/su",
        b"bin",
        b"shadow",
        b"b",
        b"c",
        b"away",
        b"absolute",
        b"\xff\xfe",
        b"new\nline 'quoted' \\ back*[?]",
        b"/".join(b"deep" + b"n" * 90 for _ in range(4)),
        b"negative",
    }
    assert (out / "usr/bin/tool").read_bytes() == b"tool"
    assert (out / "b").read_bytes() == b"first" and (out / "b").stat().st_ino == (out / "c").stat().st_ino
    assert stat.S_IMODE((out / "usr/bin/su").stat().st_mode) == 0o4755
    assert stat.S_IMODE((out / "shadow").stat().st_mode) == 0
    assert os.readlink(out / "away") == "../../../etc/passwd" and os.readlink(out / "absolute") == "/etc/passwd"
    assert (out / "negative").stat().st_mtime == 0 and (out / "b").stat().st_mtime == 1_600_000_000
    assert out.stat().st_mtime == 1_500_000_000 and stat.S_IMODE(out.stat().st_mode) == 0o711
    assert (out / "usr/bin").stat().st_mtime == 1_600_000_001 and stat.S_IMODE((out / "usr").stat().st_mode) == 0o755
    if os.geteuid() == 0:
        assert {(path.lstat().st_uid, path.lstat().st_gid) for path in (out, *out.rglob("*"))} == {(0, 1)}


def test_contents_of_all_sizes(room: Path) -> None:
    sizes = [0, 1, 511, 512, 513, 4095, 131_071, 131_072, 131_073, 3_000_000]
    contents = {f"f{size}": os.urandom(size) for size in sizes}
    out = unpack(room, make(room, "x", [[file(name, data) for name, data in contents.items()]]))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == contents


@pytest.mark.parametrize("count", [1, 254, 255, 256, 257, 3000])
def test_the_same_layers_give_the_same_bytes(room: Path, count: int) -> None:
    layers = [[file(f"f{n}", b"%d" % n * 50) for n in range(count)], [symlink("s", "f0"), hardlink("h", "f0")]]
    first = make(room, "first", layers)
    second = int(time.time())
    wait_until(lambda: int(time.time()) != second, what="the next second")
    again = make(room, "again", layers)
    assert hashlib.sha256(first.read_bytes()).digest() == hashlib.sha256(again.read_bytes()).digest()


def test_kernels_with_large_pages_can_mount_it(room: Path) -> None:
    """Their pages have up to 64 KiB, and a SquashFS has to have blocks at least as large."""
    for start in (make(room, "x", [[file("a", b"a")]]).read_bytes(), devicemapper.TINY):
        assert struct.unpack_from("<4sIII", start)[::3] == (b"hsqs", 128 << 10)


def test_an_image_of_nothing(room: Path) -> None:
    assert list(unpack(room, make(room, "x", [])).iterdir()) == []


def test_the_program_fails(room: Path) -> None:
    with pytest.raises(ImageError, match="cannot run /nowhere/mksquashfs"):
        make(room, "a", [[file("a")]], "/nowhere/mksquashfs")
    script = room / "fails"
    script.write_text("#!/bin/sh\nexec 0<&-\necho first\necho FATAL: it did not work >&2\nexit 3\n")
    script.chmod(0o755)
    with pytest.raises(ImageError, match="mksquashfs failed: first; FATAL: it did not work"):
        make(room, "b", [[file("a", b"x" * 3_000_000)]], str(script))
    script.write_text("#!/bin/sh\nexec cat > /dev/null\n")
    with pytest.raises((ImageError, FileNotFoundError)):
        make(room, "c", [[file("a")]], str(script))
    script.write_text('#!/bin/sh\nhead -c 5000 /dev/zero > "$2"\nexec cat > /dev/null\n')
    with pytest.raises(ImageError, match="not a whole SquashFS"):
        make(room, "d", [[file("a")]], str(script))
    script.write_text("#!/bin/sh\nkill -9 $$\n")
    with pytest.raises(ImageError, match="ended by SIGKILL"):
        make(room, "e", [[file("a", b"x" * 3_000_000)]], str(script))


def test_processors_of_a_conversion(monkeypatch: pytest.MonkeyPatch) -> None:
    assert limits.processors_of(3) == 3
    for there, used in ((1, 1), (2, 1), (8, 4), (128, 8)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, count=there: range(count))
        assert limits.processors_of(0) == used
