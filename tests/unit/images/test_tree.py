"""Layers laid over each other: whiteouts, links, and hostile archives. Nothing is written to disk but layers."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from piolet.base.errors import ImageError
from piolet.images import manifest as documents
from piolet.images import squash
from piolet.images.blob import Budget
from piolet.images.limits import UNPACKED_MOST
from piolet.images.tarstream import TarReader
from piolet.images.tree import Directory, HardLink, Tree

from tests.support import oci
from tests.support.oci import Entry, Packed, device, file, folder, hardlink, opaque, symlink, whiteout

Layers = Sequence[Sequence[Entry] | bytes | Packed]


def merged(tmp_path: Path, layers: Layers, limit: int = UNPACKED_MOST, **more: list[str]) -> Tree:
    oci.build(tmp_path / "image", layers, **more)  # type: ignore[arg-type]
    manifest = documents.parse_manifest((tmp_path / "image/manifest.json").read_bytes(), "test")
    raw = (tmp_path / "image" / manifest.config.hex).read_bytes()
    config = documents.parse_config(raw, "test", oci.ARCHITECTURE)
    places = squash.layers_of(manifest, config, str(tmp_path / "image"))
    return squash.merge(places, config, lambda _: None, Budget(limit))


def listing(tree: Tree) -> dict[str, str]:
    """Return each path with what it is: a directory's or file's mode, a link's target, 'special'."""
    found = {path.decode(): f"{node.mode:o}/" for path, node in tree.directories()}
    for inode in tree.inodes():
        shown = inode.target.decode() if inode.kind == "symlink" else "special"
        for name in inode.names:
            found[name.decode("utf-8", "surrogateescape")] = f"{inode.mode:o}" if inode.kind == "file" else shown
    return found


def at(tree: Tree, path: str) -> Directory | HardLink | object:
    node: object = tree.root
    for part in path.split("/"):
        assert isinstance(node, Directory)
        node = node.entries[part.encode()]
    return node


def test_whiteout_hides_lower_layers_only(tmp_path: Path) -> None:
    lower = [folder("d"), file("d/a"), file("d/b"), file("keep")]
    upper = [file("d/a", mode=0o600), whiteout("d/a"), whiteout("d/b"), whiteout("not-there"), whiteout("no/where")]
    assert listing(merged(tmp_path, [lower, upper])) == {"d": "755/", "d/a": "600", "keep": "644"}


def test_whiteout_of_a_directory_keeps_what_its_own_layer_has(tmp_path: Path) -> None:
    lower = [folder("d"), folder("d/e"), file("d/e/old"), file("d/old")]
    upper = [file("d/e/new"), whiteout("d")]
    assert listing(merged(tmp_path, [lower, upper])) == {"d": "755/", "d/e": "755/", "d/e/new": "644"}


def test_whiteout_of_a_whole_directory(tmp_path: Path) -> None:
    assert listing(merged(tmp_path, [[folder("d"), file("d/e/f")], [whiteout("d")]])) == {}


def test_opaque_directory(tmp_path: Path) -> None:
    lower = [folder("d"), file("d/a"), file("d/sub/b"), file("x")]
    upper = [folder("d", 0o700), file("d/new"), opaque("d"), file("d/newer")]
    assert listing(merged(tmp_path, [lower, upper])) == {"d": "700/", "d/new": "644", "d/newer": "644", "x": "644"}


def test_what_was_hidden_may_come_back(tmp_path: Path) -> None:
    tree = merged(tmp_path, [[file("a", mode=0o600)], [whiteout("a")], [file("a", mode=0o640)]])
    assert listing(tree) == {"a": "640"}


def test_hard_links_across_layers(tmp_path: Path) -> None:
    tree = merged(tmp_path, [[file("a", b"content")], [hardlink("b", "a"), whiteout("a")], [hardlink("./c", "/b")]])
    names = {name for inode in tree.inodes() for name in inode.names}
    list(tree.directories())
    names = {name for inode in tree.inodes() for name in inode.names}
    assert names == {b"b", b"c"}


def test_hard_link_to_what_the_same_layer_hid_before(tmp_path: Path) -> None:
    tree = merged(tmp_path, [[file("d/a", b"content", 0o600)], [whiteout("d/a"), hardlink("b", "d/a")]])
    assert listing(tree) == {"d": "755/", "b": "600"}


def test_hard_link_to_what_an_opaque_directory_hid(tmp_path: Path) -> None:
    tree = merged(tmp_path, [[file("d/e/a", b"content", 0o600)], [opaque("d"), hardlink("b", "d/e/a")]])
    assert listing(tree) == {"d": "755/", "b": "600"}


def test_usr_merge(tmp_path: Path) -> None:
    lower = [folder("usr"), folder("usr/bin"), symlink("bin", "usr/bin"), symlink("lib", "/usr/lib")]
    upper = [file("bin/tool", mode=0o755), file("lib/x.so"), hardlink("bin/again", "bin/tool"), whiteout("bin/gone")]
    tree = merged(tmp_path, [[*lower, file("usr/bin/gone")], upper])
    assert listing(tree) == {
        "bin": "usr/bin",
        "lib": "/usr/lib",
        "usr": "755/",
        "usr/bin": "755/",
        "usr/lib": "755/",
        "usr/bin/tool": "755",
        "usr/bin/again": "755",
        "usr/lib/x.so": "644",
    }


def test_links_cannot_leave_the_root(tmp_path: Path) -> None:
    tree = merged(tmp_path, [[symlink("out", "../../../../etc"), symlink("abs", "/")], [file("out/x"), file("abs/y")]])
    assert listing(tree) == {"out": "../../../../etc", "abs": "/", "etc": "755/", "etc/x": "644", "y": "644"}


def test_link_loop(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"layer 2 of 2 .* loop of symbolic links"):
        merged(tmp_path, [[symlink("a", "b"), symlink("b", "a")], [file("a/x")]])


def test_directory_and_file_take_each_others_place(tmp_path: Path) -> None:
    lower = [folder("d"), file("d/x"), file("f"), symlink("s", "d")]
    upper = [file("d"), folder("f"), file("f/y"), folder("s"), file("s/z")]
    assert listing(merged(tmp_path, [lower, upper])) == {
        "d": "644",
        "f": "755/",
        "f/y": "644",
        "s": "755/",
        "s/z": "644",
    }


def test_names_are_normalised(tmp_path: Path) -> None:
    tree = merged(tmp_path, [[file("/abs/a"), file("./x/../y//b"), file("x/./c")]])
    assert listing(tree) == {"abs": "755/", "abs/a": "644", "y": "755/", "y/b": "644", "x": "755/", "x/c": "644"}


@pytest.mark.parametrize("name", ["../etc/passwd", "a/../../b", "/..", "./../x"])
def test_names_that_leave_the_root(tmp_path: Path, name: str) -> None:
    with pytest.raises(ImageError, match=r"layer 1 of 1 \(sha256:[0-9a-f]{12}\) is unusable: .* leaves the root"):
        merged(tmp_path, [[file(name)]])


def test_duplicates_in_a_layer_the_last_wins(tmp_path: Path) -> None:
    entries = [file("a", b"1", 0o600), file("a", b"2", 0o640), folder("d", 0o700), file("d/x"), folder("d", 0o711)]
    assert listing(merged(tmp_path, [entries])) == {"a": "640", "d": "711/", "d/x": "644"}


def test_specials_hide_what_is_below_and_are_kept_apart(tmp_path: Path) -> None:
    tree = merged(tmp_path, [[file("n"), file("p")], [device("n"), device("p", tarfile.FIFOTYPE), hardlink("q", "n")]])
    assert listing(tree) == {"n": "special", "p": "special", "q": "special"}


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (hardlink("a", "nowhere"), "nothing that is there"),
        (hardlink("a", "d"), "a directory"),
        (hardlink("a", "/"), "nothing that is there"),
        (file("x/.wh."), "hides nothing"),
        (file(".wh..."), "hides nothing"),
        (file(".wh.."), "hides nothing"),
        (file("."), "root directory"),
        (symlink("s", ""), "points nowhere"),
        (file("n" * 256), "longer than 255"),
        (file("/".join(["n" * 200] * 30)), "longer than 4096"),
    ],
)
def test_malformed_entries(tmp_path: Path, entry: Entry, said: str) -> None:
    with pytest.raises(ImageError, match=said):
        merged(tmp_path, [[folder("d"), file("keep")], [entry]])


def test_modes_are_kept(tmp_path: Path) -> None:
    tree = merged(tmp_path, [[file("zero", mode=0), file("suid", mode=0o6755), folder("sticky", 0o1777)]])
    assert listing(tree) == {"zero": "0", "suid": "6755", "sticky": "1777/"}


def test_odd_names(tmp_path: Path) -> None:
    names = ["\udcff\udcfe", "new\nline", "back\\slash", "sp ace", "ü" * 120, "x" * 200 + "/" + "y" * 200, "*?["]
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        tree = merged(tmp_path / str(form), [oci.tar([file(name) for name in names], form)])
        assert {name for name, what in listing(tree).items() if what == "644"} == set(names)


def test_node_limit() -> None:
    tree = Tree(node_limit=10)
    with pytest.raises(ImageError, match="more than 10 files"):
        for number in range(6):
            member = next(TarReader(_Stream(oci.tar([file(f"d{number}/f")]))).members())  # type: ignore[arg-type]
            tree.add(member, 0)


def test_repeated_opaque_marks_cost_nothing(tmp_path: Path) -> None:
    lower = [file(f"d/{number}") for number in range(300)]
    tree = merged(tmp_path, [lower, [*(opaque("d") for _ in range(300)), file("d/x")]])
    assert listing(tree) == {"d": "755/", "d/x": "644"}


@pytest.mark.parametrize("compression", ["gzip", "zstd", ""])
def test_compressions(tmp_path: Path, compression: str) -> None:
    assert listing(merged(tmp_path, [oci.pack([file("a")], compression)])) == {"a": "644"}


def _plain(entries: Sequence[Entry]) -> bytes:
    return oci.tar(entries)


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (b"not a tar at all " * 60, "it is not a tar archive"),
        (b"short", "it is not a tar archive"),
        (oci.pack(_plain([file("a", b"x" * 3000)])[:1024]), "truncated inside a file"),
        (
            Packed(oci.pack([file("a", b"x" * 3000)]).data[:-20], "sha256:" + "0" * 64, "gzip"),
            "gzip stream is truncated",
        ),
        (Packed(oci.pack([file("a")]).data + b"junk", "sha256:" + "0" * 64, "gzip"), "gzip stream is damaged"),
        (Packed(oci.pack([file("a")], "zstd").data[:-4], "sha256:" + "0" * 64, "zstd"), "zstd stream is damaged"),
        (Packed(b"\xfd7zXZ\0....", "sha256:" + "0" * 64, "gzip"), "xz or bzip2"),
        (Packed(oci.pack([file("a")]).data, "sha256:" + "0" * 64, "gzip"), "not what the configuration promises"),
    ],
)
def test_broken_layers(tmp_path: Path, layer: bytes | Packed, said: str) -> None:
    with pytest.raises(ImageError, match=said) as caught:
        merged(tmp_path, [[file("fine")], layer])
    assert caught.value.message.startswith("layer 2 of 2 (sha256:")


def _broken(change: int, by: bytes) -> bytes:
    raw = bytearray(oci.tar([file("a", b"x"), file("b", b"y")], tarfile.USTAR_FORMAT))
    raw[change : change + len(by)] = by
    return bytes(raw)


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (_broken(1024, b"Z"), "damaged header"),
        (_broken(1024, bytes(512)), "empty block in the middle"),
        (_broken(124, b"77777777777"), "it is not a tar archive"),
    ],
)
def test_broken_headers(tmp_path: Path, layer: bytes, said: str) -> None:
    with pytest.raises(ImageError, match=said):
        merged(tmp_path, [layer])


def test_a_layer_that_lies_about_a_size(tmp_path: Path) -> None:
    info = tarfile.TarInfo("big")
    info.size = 10**9
    with pytest.raises(ImageError, match="truncated inside a file"):
        merged(tmp_path, [info.tobuf() + bytes(2048)])


def test_bombs(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="unpacked content"):
        merged(tmp_path, [[file("zeros", bytes(3 << 20))]], limit=1 << 20)
    sparse = _sparse_old(1 << 40)
    with pytest.raises(ImageError, match="unpacked content"):
        merged(tmp_path / "2", [sparse], limit=1 << 30)


def _sparse_old(size: int) -> bytes:
    info = tarfile.TarInfo("sparse")
    info.size = 4
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[156:157] = b"S"
    block[386:410] = b"%011o\0%011o\0" % (1000, 4)
    block[483:495] = b"\x80" + size.to_bytes(11, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + b"data".ljust(512, b"\0") + bytes(1024)


def _pax(records: dict[str, str], name: str, data: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.pax_headers = records
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


class _Stream:
    """The part of LayerStream that a TarReader uses, over bytes."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    def read(self, count: int) -> bytes:
        return self._file.read(count)

    def charge(self, count: int) -> None:
        pass

    def pass_on(self, count: int, take: object) -> int:
        data = self._file.read(count)
        take(data)  # type: ignore[operator]
        return len(data)


@pytest.mark.parametrize(
    "archive",
    [
        _sparse_old(3000),
        _pax({"GNU.sparse.map": "1000,4", "GNU.sparse.size": "3000", "GNU.sparse.name": "sparse"}, "p", b"data"),
        _pax(
            {
                "GNU.sparse.major": "1",
                "GNU.sparse.minor": "0",
                "GNU.sparse.realsize": "3000",
                "GNU.sparse.name": "sparse",
            },
            "p",
            b"1\n1000\n4\n".ljust(512, b"\0") + b"data",
        ),
    ],
)
def test_sparse_files(archive: bytes) -> None:
    reader = TarReader(_Stream(archive))  # type: ignore[arg-type]
    pieces: list[bytes] = []
    for member in reader.members():
        assert (member.name, member.size) == (b"sparse", 3000)
        reader.copy(member, pieces.append)
    assert b"".join(pieces) == bytes(1000) + b"data" + bytes(1996)


@pytest.mark.parametrize(
    "records",
    [
        {"GNU.sparse.map": "1000,4,900,4", "GNU.sparse.size": "3000"},
        {"GNU.sparse.map": "1000,400", "GNU.sparse.size": "3000"},
        {"GNU.sparse.map": "0,4", "GNU.sparse.size": "2"},
        {"GNU.sparse.map": "0,4"},
        {"GNU.sparse.map": "x,4", "GNU.sparse.size": "3000"},
        {"GNU.sparse.major": "1", "GNU.sparse.realsize": "9"},
    ],
)
def test_malformed_sparse_files(records: dict[str, str]) -> None:
    with pytest.raises(ImageError, match=r"sparse|malformed number|truncated"):
        list(TarReader(_Stream(_pax(records, "p", b"data"))).members())  # type: ignore[arg-type]


def test_wrong_number_of_layers(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="1 layers, but its configuration speaks of 2"):
        merged(tmp_path, [[file("a")]], diff_ids=["sha256:" + "0" * 64] * 2)
