"""Hostile archives are refused in a sentence, and change nothing."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

from tests.images.conftest import ALICE, BOB, SECRET, SERVICE, Place, Site, needs_root
from tests.images.layout import Layout, digest
from tests.support import oci
from tests.support.oci import Entry, device, file, folder, hardlink, symlink
from tests.support.registry import Registry

CONTENT = b"alice's own bytes"


def through_a_directory_link(place: Place) -> list[Entry]:
    """Row 1: a link to the store, and a file "below" it, behind a whole image."""
    parts = Layout.of([file("a")]).entries()
    for number, victim in enumerate(place.victims):
        parts += [symlink(f"x{number}", str(victim.parent)), file(f"x{number}/{victim.name}", b"replaced")]
    return parts


def links_first(place: Place) -> list[Entry]:
    return list(reversed(through_a_directory_link(place)[-2:])) + Layout.of([file("a")]).entries()


def a_link_in_the_place_of_blobs(place: Place) -> list[Entry]:
    parts = Layout.of([file("a")]).entries()
    return [symlink("blobs", str(place.store)), *(part for part in parts if part.info.type != tarfile.DIRTYPE)]


def a_blob_that_is_a_link(place: Place) -> list[Entry]:
    """Row 2: the content of a file of the service's, as a layer."""
    made = Layout.of([file("a")])
    layer = digest(made.blobs[0])
    parts = [part for part in made.entries() if layer not in part.info.name]
    return [*parts, symlink(f"blobs/sha256/{layer}", str(place.site.room / "secret"))]


def an_index_that_is_a_link(place: Place) -> list[Entry]:
    parts = [part for part in Layout.of([file("a")]).entries() if part.info.name != "index.json"]
    return [*parts, symlink("index.json", str(place.site.room / "secret"))]


def with_more(*more: Entry) -> Callable[[Place], list[Entry]]:
    return lambda _: [*Layout.of([file("a")]).entries(), *more]


def twice(_: Place) -> list[Entry]:
    parts = Layout.of([file("a")]).entries()
    return [*parts, next(part for part in parts if part.info.name == "index.json")]


def a_wrong_blob(_: Place) -> list[Entry]:
    made = Layout.of([file("a")])
    return [*made.entries(), file("blobs/sha256/" + "0" * 64, CONTENT)]


def a_wrong_layer(_: Place) -> list[Entry]:
    made = Layout.of([file("a")])
    layer = f"blobs/sha256/{digest(made.blobs[0])}"
    return [file(layer, CONTENT) if part.info.name == layer else part for part in made.entries()]


def a_missing_layer(_: Place) -> list[Entry]:
    made = Layout.of([file("a")])
    return [part for part in made.entries() if digest(made.blobs[0]) not in part.info.name]


def sparse(_: Place) -> bytes:
    headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.map": "0,1", "GNU.sparse.size": "1000000"}
    name = f"blobs/sha256/{'0' * 64}"
    return oci.tar([*Layout.of([file("a")]).entries(), file(name, b"x", pax_headers=headers)])


def many(_: Place) -> list[Entry]:
    return [folder(f"d{number}") for number in range(10_002)]


def nested(_: Place) -> list[Entry]:
    made = Layout.of([file("a")])
    inner = made.described(
        made.manifest, f"{oci.OCI}.manifest.v1+json", platform={"os": "linux", "architecture": oci.ARCHITECTURE}
    )
    for _depth in range(5):
        data = json.dumps({"schemaVersion": 2, "manifests": [inner]}).encode()
        made.blobs.append(data)
        inner = made.described(data, f"{oci.OCI}.index.v1+json")
    made.name([inner])
    return made.entries()


def several(_: Place) -> list[Entry]:
    one, two = Layout.of([file("a")]), Layout.of([file("b")])
    one.blobs += two.blobs
    one.name([one.described(two.manifest, "x"), one.described(Layout.of([file("a")]).manifest, "x")])
    return one.entries()


def garbage(name: str, data: bytes) -> Callable[[Place], list[Entry]]:
    return lambda _: [file(name, data) if part.info.name == name else part for part in Layout.of([file("a")]).entries()]


HOSTILE: list[tuple[Callable[[Place], list[Entry] | bytes], str]] = [
    (through_a_directory_link, "the symbolic link 'x0'"),
    (links_first, "the symbolic link 'x2'"),
    (a_link_in_the_place_of_blobs, "the symbolic link 'blobs'"),
    (a_blob_that_is_a_link, "the symbolic link"),
    (an_index_that_is_a_link, "the symbolic link 'index.json'"),
    (with_more(hardlink("copy", "/etc/passwd")), "the hard link 'copy'"),
    (with_more(hardlink("copy", "index.json")), "the hard link 'copy'"),
    (with_more(file("/etc/passwd")), "an entry with the name '/etc/passwd'"),
    (with_more(file("../../refs/public/x")), "an entry with the name '../../refs/public/x'"),
    (with_more(file("blobs/../../x")), "an entry with the name"),
    (with_more(file("blobs/./x")), "an entry with the name"),
    (with_more(file("blobs//x")), "an entry with the name"),
    (with_more(folder("../x")), "an entry with the name"),
    (with_more(file("new\nline\x1b[31m")), "an entry with the name"),
    (with_more(file("a b")), "an entry with the name"),
    (with_more(file("\u00e4")), "an entry with the name"),
    (with_more(file("n" * 300)), "an entry with the name"),
    (with_more(file("n" * 5000)), "a name longer than 4096 bytes"),
    (with_more(device("null")), "the device node or FIFO 'null'"),
    (with_more(device("null", tarfile.BLKTYPE)), "the device node or FIFO 'null'"),
    (with_more(device("fifo", tarfile.FIFOTYPE)), "the device node or FIFO 'fifo'"),
    (with_more(file("big", bytes(1 << 21))), "the file 'big', which is too large"),
    (sparse, "the sparse file"),
    (twice, "'index.json' twice"),
    (a_wrong_blob, "the blob sha256:000000000000 does not have the content that its digest promises"),
    (a_wrong_layer, "does not have the content that its digest promises"),
    (a_missing_layer, "is missing"),
    (many, "more than 10000 entries"),
    (nested, "a list inside 4 lists of images"),
    (several, "has 2 images"),
    (garbage("index.json", b"[]"), "index.json in it is not the JSON"),
    (garbage("index.json", b'{"manifests": 7}'), "no list of manifests"),
    (garbage("index.json", b'{"manifests": [7]}'), "no list of manifests"),
    (garbage("index.json", b'{"manifests": []}'), "names no image"),
    (garbage("index.json", b'{"manifests": [{"digest": "sha256:../x"}]}'), "without a sha256 digest"),
    (garbage("index.json", b'{"manifests": [{"digest": "sha256:' + b"1" * 64 + b'"}]}'), "is missing"),
    (garbage("index.json", b"[" * 100_000), "index.json in it is not the JSON"),
]


@needs_root()
def test_hostile_archives(place: Place) -> None:
    """Each of them; in one test, as starting a service takes longer than refusing an archive."""
    before = place.listing()
    for number, (make, said) in enumerate(HOSTILE):
        refused = place.bring(make(place))
        error = refused.stderr.partition("piolet: error: ")[2]
        assert refused.returncode == 1 and said in error, (number, said, refused.stderr)
        assert SECRET.decode() not in error and digest(SECRET)[:12] not in error and "Traceback" not in error
        assert error.count("\n") <= 2 and "\x1b" not in error, "one sentence and a hint"
        assert place.listing() == before, (number, said)
    assert "there is no image" in place.site.ask(ALICE, "localhost/a:latest", **place.more)["error"]


@needs_root()
def test_rows_1_and_2_reach_nobody_else(site: Site, registry: Registry, image: Path, room: Path) -> None:
    """The public image is what it was for bob, and alice learns nothing of the service's file."""
    reference = registry.push(image, "demo:1")
    path = site.store / f"{site.ask(BOB, reference)['digest'].replace(':', '-')}.sqsh"
    was = path.read_bytes()
    place = Place(site, site.store, {}, [path, path.with_suffix(".access")])
    (room / "secret").write_bytes(SECRET)
    os.chown(room / "secret", SERVICE, SERVICE)
    for make in (through_a_directory_link, a_blob_that_is_a_link):
        assert place.bring(make(place)).returncode == 1
    assert path.read_bytes() == was and site.leftovers() == [] and len(site.images()) == 1
    assert "error" not in site.ask(BOB, reference)
