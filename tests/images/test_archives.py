"""Archives that users bring: all usual kinds come in, and what is no archive is refused."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.images.conftest import ALICE, Place, needs_root
from tests.images.layout import Layout, digest
from tests.support import oci
from tests.support.oci import Entry, file, folder, symlink


def old_docker(*, linked: bool) -> list[Entry]:
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
    made = place.bring(old_docker(linked=False), tar)
    assert made.returncode == 0, made.stderr
    refused = place.bring(old_docker(linked=True), tar, "--name", "b")
    assert "is a symbolic link" in refused.stderr and "hint: save it again with a current docker" in refused.stderr
    parts = old_docker(linked=False)
    parts.append(symlink("3" * 64 + "/layer.tar", "../../../../etc/passwd"))
    assert "the symbolic link" in place.bring(parts, tar, "--name", "b").stderr
    parts = old_docker(linked=False)
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
    content = f"content {packed}".encode()
    raw = oci.tar(Layout.of([file("a", content)]).entries())
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
    assert shown.stdout == content


@needs_root()
@pytest.mark.parametrize("compression", ["", "zstd"])
def test_an_archive_through_a_pipe_whose_index_comes_last(place: Place, compression: str) -> None:
    made = Layout.of([file("a", os.urandom(3 << 20))])
    raw = oci.tar(list(reversed(made.entries())))
    if compression:
        raw = subprocess.run(["zstd", "-qc"], input=raw, stdout=subprocess.PIPE, check=True).stdout
    fifo = place.site.room / f"pipe{compression}"
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
