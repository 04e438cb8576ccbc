"""Archives that users bring: hostile ones are refused in a sentence, and change nothing; all usual kinds come in."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.images.conftest import ALICE, BOB, SERVICE, Site, needs_root
from tests.support import oci
from tests.support.oci import Entry, device, file, folder, hardlink, symlink
from tests.support.registry import Registry

CONTENT = b"alice's own bytes"
SECRET = b"what only the service may read"


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass
class Layout:
    """The files of an OCI archive, to be spoilt."""

    documents: dict[str, bytes] = field(default_factory=dict)
    blobs: list[bytes] = field(default_factory=list)

    @classmethod
    def of(cls, entries: list[Entry], *, architecture: str = oci.ARCHITECTURE, compression: str = "gzip") -> Layout:
        """Make the archive of an image of one layer."""
        layer = oci.pack(entries, compression)
        config = json.dumps(
            {"architecture": architecture, "os": "linux", "rootfs": {"type": "layers", "diff_ids": [layer.diff_id]}}
        ).encode()
        manifest = json.dumps(
            {
                "schemaVersion": 2,
                "config": cls.described(config, f"{oci.OCI}.config.v1+json"),
                "layers": [cls.described(layer.data, f"{oci.OCI}.layer.v1.tar")],
            }
        ).encode()
        made = cls({"oci-layout": b'{"imageLayoutVersion": "1.0.0"}'}, [layer.data, config, manifest])
        made.name([cls.described(manifest, f"{oci.OCI}.manifest.v1+json")])
        return made

    @staticmethod
    def described(data: bytes, kind: str, **more: Any) -> dict[str, Any]:
        return {"mediaType": kind, "digest": f"sha256:{digest(data)}", "size": len(data), **more}

    def name(self, manifests: list[dict[str, Any]]) -> None:
        self.documents["index.json"] = json.dumps({"schemaVersion": 2, "manifests": manifests}).encode()

    @property
    def manifest(self) -> bytes:
        return self.blobs[-1]

    def entries(self) -> list[Entry]:
        blobs = [file(f"blobs/sha256/{digest(data)}", data) for data in self.blobs]
        return [
            *(file(name, data) for name, data in self.documents.items()),
            folder("blobs"),
            folder("blobs/sha256"),
            *blobs,
        ]


@dataclass
class Place:
    """Where alice imports to: the image service, or a store of her own."""

    site: Site
    store: Path
    more: dict[str, str]
    victims: list[Path]

    def bring(
        self, entries: list[Entry] | bytes, *words: str, form: int = tarfile.PAX_FORMAT
    ) -> subprocess.CompletedProcess[str]:
        path = self.site.room / "a.tar"
        path.write_bytes(entries if isinstance(entries, bytes) else oci.tar(entries, form))
        return self.site.piolet(ALICE, "image", "import", *(words or (f"oci-archive:{path}",)), **self.more)

    def listing(self) -> dict[str, Any]:
        """Return mode, size, owner, time and links of everything in the store, in the home and beside it."""
        found: dict[str, Any] = {}
        for top in (self.store, self.site.room / "home", self.site.room / "secret"):
            for path in [top, *top.rglob("*")]:
                if path.parent.name not in ("leases", "tmp") and path.name not in ("leases", "tmp"):
                    seen = path.lstat()
                    target = os.readlink(path) if path.is_symlink() else ""
                    time = 0 if path.is_dir() else seen.st_mtime_ns
                    found[str(path)] = (
                        seen.st_mode,
                        seen.st_size if not path.is_dir() else 0,
                        seen.st_uid,
                        time,
                        target,
                    )
        return found


@pytest.fixture(params=["service", "own store"])
def place(request: pytest.FixtureRequest, site: Site, registry: Registry, room: Path, image: Path) -> Iterator[Place]:
    """A store with a public image in it, and a file of the account that imports."""
    home = room / "home"
    home.mkdir()
    (home / ".profile").write_text("mine")
    secret = room / "secret"
    secret.write_bytes(SECRET)
    secret.chmod(0o600)
    os.chown(secret, SERVICE, SERVICE)
    more, store = {"HOME": str(home)}, site.store
    if request.param == "own store":
        store = home / "images"
        more["EDF_IMAGESTORE"] = str(store)
        os.chown(secret, ALICE, ALICE)
    subprocess.run(["chown", "-R", f"{ALICE}:{ALICE}", home], check=True)
    pulled = site.ask(ALICE, registry.push(image, "demo:1"), **more)
    name = pulled["digest"].replace(":", "-")
    yield Place(site, store, more, [store / f"{name}.sqsh", store / f"{name}.access", home / ".profile"])


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
    for _depth in range(2):
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
    (nested, "a list inside lists of images"),
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


def old_docker(place: Place, *, linked: bool) -> list[Entry]:
    """What docker before 25 saved: HEX/layer.tar, a link to another image's where that has the same layer."""
    layer = oci.tar([file("a", b"old")])
    first, second = "1" * 64, "2" * 64
    config = json.dumps(
        {
            "architecture": oci.ARCHITECTURE,
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest(layer)}"] * (2 if linked else 1)},
        }
    ).encode()
    layers = [f"{first}/layer.tar", *([f"{second}/layer.tar"] if linked else [])]
    named = [{"Config": f"{digest(config)}.json", "RepoTags": None, "Layers": layers}]
    return [
        folder(first), file(f"{first}/VERSION", b"1.0"), file(f"{first}/json", b"{}"),
        file(f"{first}/layer.tar", layer),
        folder(second), symlink(f"{second}/layer.tar", f"../{first}/layer.tar"),
        file(f"{digest(config)}.json", config), file("manifest.json", json.dumps(named).encode()),
        file("repositories", b"{}"),
    ]  # fmt: skip


@needs_root()
def test_what_an_old_docker_saved(place: Place) -> None:
    tar = f"docker-archive:{place.site.room}/a.tar"
    made = place.bring(old_docker(place, linked=False), tar)
    assert made.returncode == 0, made.stderr
    refused = place.bring(old_docker(place, linked=True), tar, "--name", "b")
    assert "is a symbolic link" in refused.stderr and "hint: save it again with a current docker" in refused.stderr
    parts = old_docker(place, linked=False)
    parts.append(symlink("3" * 64 + "/layer.tar", "../../../../etc/passwd"))
    assert "the symbolic link" in place.bring(parts, tar, "--name", "b").stderr
    parts = old_docker(place, linked=False)
    parts.append(file("2" * 64 + "/layer.tar", b"through the link"))
    assert "twice" in place.bring(parts, tar, "--name", "b").stderr


@needs_root()
def test_docker_archives_that_are_none(place: Place) -> None:
    tar = f"docker-archive:{place.site.room}/a.tar"
    for value, said in (
        ([], "has 0 images"),
        ([{}, {}], "has 2 images"),
        ([7], "malformed"),
        ([{"Config": "x", "Layers": "y"}], "malformed"),
        ([{"Config": "../../secret", "Layers": []}], "names is missing"),
        ([{"Config": "a.json", "Layers": [["b"]]}], "names is missing"),
        ({}, "not the JSON"),
    ):
        refused = place.bring([file("manifest.json", json.dumps(value).encode())], tar)
        assert refused.returncode == 1 and said in refused.stderr, refused.stderr
    assert "neither an OCI nor a docker archive" in place.bring([file("x")], tar).stderr


@needs_root()
@pytest.mark.parametrize("packed", ["", "gzip", "zstd", "xz"])
def test_packed_archives(place: Place, packed: str) -> None:
    raw = oci.tar(Layout.of([file("a", b"content")]).entries())
    if packed == "gzip":
        raw = gzip.compress(raw)
    elif packed:
        raw = subprocess.run([packed, "-qc"], input=raw, stdout=subprocess.PIPE, check=True).stdout
    made = place.bring(raw, str(place.site.room / "a.tar"))
    if packed == "xz":
        assert "compressed with xz or bzip2" in made.stderr
        return
    assert made.returncode == 0, made.stderr
    found = place.site.ask(ALICE, "localhost/a", **place.more)
    path = place.store / f"{found['digest'].replace(':', '-')}.sqsh"
    shown = subprocess.run(["unsquashfs", "-cat", path, "a"], capture_output=True, check=True)
    assert shown.stdout == b"content"


@needs_root()
@pytest.mark.parametrize("compression", ["", "zstd"])
def test_an_archive_through_a_pipe_whose_index_comes_last(place: Place, compression: str) -> None:
    made = Layout.of([file("a", os.urandom(3 << 20))])
    raw = oci.tar(list(reversed(made.entries())))
    if compression:
        raw = subprocess.run(["zstd", "-qc"], input=raw, stdout=subprocess.PIPE, check=True).stdout
    fifo = place.site.room / "pipe"
    os.mkfifo(fifo, 0o644)
    writer = subprocess.Popen(["dd", f"of={fifo}", "bs=7000", "status=none"], stdin=subprocess.PIPE)
    assert writer.stdin is not None
    # Only when the importer has opened it does dd read; what does not fit waits in a thread of its own.
    feeder = subprocess.Popen(["cat", _file(place.site.room / "raw", raw)], stdout=writer.stdin)
    writer.stdin.close()
    done = place.site.piolet(ALICE, "image", "import", f"oci-archive:{fifo}", "--name", "p", **place.more)
    feeder.wait()
    writer.wait()
    assert done.returncode == 0 and f"sha256:{digest(made.manifest)}" in done.stdout, done.stderr
    again = place.bring(made.entries(), f"oci-archive:{place.site.room}/a.tar")
    assert again.stdout.split()[1] == done.stdout.split()[1], "the same image, however it comes"


def _file(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


@needs_root()
def test_an_index_with_platforms_and_attestations(place: Place) -> None:
    """As builders write it: index.json names an index, and that two platforms and what was attested of them."""
    parts = {name: Layout.of([file(name)], architecture=name) for name in ("arm64", "amd64")}
    made = Layout(dict(parts["amd64"].documents), [blob for part in parts.values() for blob in part.blobs])
    described = [
        made.described(part.manifest, f"{oci.OCI}.manifest.v1+json", platform={"os": "linux", "architecture": name})
        for name, part in parts.items()
    ]
    attested = made.described(
        b"{}", f"{oci.OCI}.manifest.v1+json", platform={"os": "unknown", "architecture": "unknown"}
    )
    attested["annotations"] = {"vnd.docker.reference.type": "attestation-manifest"}
    index = json.dumps({"schemaVersion": 2, "manifests": [*described, attested]}).encode()
    made.blobs.append(index)
    made.name([made.described(index, f"{oci.OCI}.index.v1+json")])
    wanted = parts[oci.ARCHITECTURE].manifest
    done = place.bring(made.entries())
    assert done.returncode == 0 and f"sha256:{digest(wanted)}" in done.stdout, done.stderr


@needs_root()
def test_a_directory_with_links_in_it(place: Place) -> None:
    """Nothing that a link in it leads to is sent, and no blob that the image does not name."""
    made = Layout.of([file("a")])
    top = place.site.room / "layout"
    with tarfile.open(fileobj=io.BytesIO(oci.tar(made.entries()))) as archive:
        archive.extractall(top)
    (top / "blobs/sha256" / ("0" * 64)).symlink_to(place.site.room / "secret")
    os.mkfifo(top / "fifo")
    words = (f"oci:{top}",)
    done = place.bring(b"", *words)
    assert done.returncode == 0, done.stderr
    layer = top / "blobs/sha256" / digest(made.blobs[0])
    held = layer.read_bytes()
    layer.unlink()
    layer.symlink_to(_file(top / "elsewhere", held))
    refused = place.bring(b"", *words)
    assert refused.returncode == 1 and "it is a symbolic link, and an OCI layout has none" in refused.stderr
    layer.unlink()
    os.mkfifo(layer, 0o644)
    assert "is not a plain file" in place.bring(b"", *words).stderr
    (top / "blobs").rename(top / "real")
    (top / "blobs").symlink_to("real")
    assert "it is a symbolic link" in place.bring(b"", *words).stderr
    (top / "index.json").unlink()
    (top / "index.json").symlink_to("/etc/passwd")
    refused = place.bring(b"", *words)
    assert "it is a symbolic link" in refused.stderr and "root:" not in refused.stderr
