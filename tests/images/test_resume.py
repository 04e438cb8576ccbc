"""Registries that break off or are busy for a while, and images that few tools read: what came is not fetched again."""

from __future__ import annotations

import gzip
import http.server
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from piolet.images.kept import Kept

from tests.images.conftest import ALICE, BOB, Site, needs_root
from tests.support import oci
from tests.support.registry import Registry, auth_file, reply
from tests.support.waiting import wait_until

pytestmark = needs_root()
Handler = http.server.BaseHTTPRequestHandler


@pytest.fixture
def three(room: Path) -> Path:
    """An image of three layers, too large to come in one piece."""
    oci.build(room / "three", [[oci.file(name, os.urandom(3 << 20))] for name in "abc"])
    return room / "three"


def blobs(image: Path) -> list[str]:
    """Return the digests of an image's layers."""
    return [layer["digest"] for layer in json.loads((image / "manifest.json").read_bytes())["layers"]]


def fetched(registry: Registry, image: Path) -> list[int]:
    """Return how often each layer was asked for."""
    return [sum(f"blobs/{digest}" in request for request in registry.requests) for digest in blobs(image)]


def busy(times: int, where: str) -> Callable[[Handler], bool]:
    """Return what answers 503 so many times for paths that hold `where`."""
    left = times

    def disturb(handler: Handler) -> bool:
        nonlocal left
        if where not in handler.path or left == 0:
            return False
        left -= 1
        reply(handler, 503, b"{}", "application/json")
        return True

    return disturb


def cut(registry_files: Callable[[str], Path], digest: str, times: int, at: int) -> Callable[[Handler], bool]:
    """Return what sends `at` bytes of a blob so many times, and cuts the connection then; Range is not understood."""
    left = times

    def disturb(handler: Handler) -> bool:
        nonlocal left
        if digest not in handler.path or handler.command != "GET" or left == 0:
            return False
        left -= 1
        data = registry_files(digest).read_bytes()
        reply(handler, 200, data[:at], "application/octet-stream", len(data))
        handler.close_connection = True
        return True

    return disturb


@pytest.mark.parametrize("where", ["/v2/", "/manifests/", "/blobs/"])
@pytest.mark.parametrize("times", [1, 3])
def test_a_registry_that_is_busy_for_a_while(
    site: Site, registry: Registry, three: Path, where: str, times: int
) -> None:
    reference = registry.push(three, "app:1")
    registry.disturb = busy(times, where)
    pulled = site.ask(ALICE, reference)
    assert "error" not in pulled, pulled
    assert site.leftovers() == [] and list((site.store / "kept").iterdir()) == []


def test_a_connection_that_is_cut_loses_one_layer(site: Site, registry: Registry, room: Path, three: Path) -> None:
    reference = registry.push(three, "app:1")
    files = lambda digest: registry.blob_file(room / "registry", digest)  # noqa: E731
    registry.disturb = cut(files, blobs(three)[1], 2, 1 << 20)
    pulled = site.ask(ALICE, reference)
    assert "error" not in pulled, pulled
    assert fetched(registry, three)[0] == fetched(registry, three)[2] == 1 and fetched(registry, three)[1] == 3


def test_a_pull_that_broke_off_is_taken_up_where_it_was(site: Site, registry: Registry, three: Path) -> None:
    reference, last = registry.push(three, "app:1"), blobs(three)[2]
    registry.disturb = busy(1000, last)
    refused = site.ask(ALICE, reference)
    assert refused["kind"] == "RegistryUnreachable" and "503" in refused["error"]
    assert any("trying" in text and "3 of 3" in text for text in refused["said"]), refused["said"]
    assert fetched(registry, three)[:2] == [1, 1] and fetched(registry, three)[2] >= 4
    (kept,) = (site.store / "kept").iterdir()
    assert kept.name.startswith(f"{ALICE}-") and {path.name for path in kept.iterdir()} >= {
        digest.removeprefix("sha256:") for digest in blobs(three)[:2]
    }
    # Another user's pull has no part of it, nor has a check whether somebody may use an image.
    registry.requests.clear()
    site.ask(BOB, reference)
    assert fetched(registry, three)[:2] == [1, 1]
    registry.requests.clear()
    registry.disturb = None
    pulled = site.ask(ALICE, reference)
    assert "error" not in pulled and fetched(registry, three) == [0, 0, 1]
    assert {path.name.partition("-")[0] for path in (site.store / "kept").iterdir()} == {str(BOB)}
    assert site.leftovers() == []


def test_what_was_kept_is_checked(site: Site, registry: Registry, three: Path) -> None:
    reference, last = registry.push(three, "app:1"), blobs(three)[2]
    registry.disturb = busy(1000, last)
    site.ask(ALICE, reference)
    (kept,) = (site.store / "kept").iterdir()
    first = kept / blobs(three)[0].removeprefix("sha256:")
    first.write_bytes(b"x" * first.stat().st_size)
    (kept / "stranger").write_bytes(b"x")
    registry.disturb = None
    registry.requests.clear()
    assert "error" not in site.ask(ALICE, reference)
    assert fetched(registry, three) == [1, 0, 1]


def test_a_user_who_leaves_keeps_what_has_come(site: Site, registry: Registry, three: Path) -> None:
    reference, last = registry.push(three, "app:1"), blobs(three)[2]
    asked, over = threading.Event(), threading.Event()

    def disturb(handler: Handler) -> bool:
        if last in handler.path:
            asked.set()
            over.wait(30)
        return False

    def there() -> int:
        """Return how many of the first two layers are whole in a job's directory."""
        names = [digest.removeprefix("sha256:") for digest in blobs(three)[:2]]
        return sum(len(list((site.store / "tmp").rglob(name))) for name in names)

    registry.disturb = disturb
    asking = site.begin(ALICE, reference)
    wait_until(lambda: asked.is_set() and there() == 2, what="two of three layers")
    asking.kill()
    asking.communicate()
    wait_until(lambda: list((site.store / "kept").iterdir()), what="what is kept")
    over.set()
    registry.disturb = None
    registry.requests.clear()
    assert "error" not in site.ask(ALICE, reference)
    assert fetched(registry, three) == [0, 0, 1]


def test_a_link_in_the_place_of_the_blobs_leads_nowhere(tmp_path: Path) -> None:
    """What a program that was taken over leaves in its scratch directory."""
    kept, scratch, victim = Kept(str(tmp_path)), tmp_path / "scratch", tmp_path / "victim"
    for folder in (tmp_path / "kept", scratch, victim):
        folder.mkdir()
    (victim / "image.sqsh").write_bytes(b"x")
    with pytest.raises(RuntimeError), kept.resumed(str(scratch), ALICE, "x", None):
        (scratch / "blobs/sha256").symlink_to(victim)
        raise RuntimeError
    assert (victim / "image.sqsh").read_bytes() == b"x" and list((tmp_path / "kept").iterdir()) == []


def test_what_is_kept_is_bounded(tmp_path: Path) -> None:
    kept, blob = Kept(str(tmp_path)), "ab" * 32
    (tmp_path / "kept").mkdir()

    def fail(what: str, size: int, room: int | None = None) -> list[int]:
        scratch = tmp_path / f"scratch-{what}-{time.monotonic_ns()}"
        scratch.mkdir()
        with pytest.raises(RuntimeError), kept.resumed(str(scratch), ALICE, what, room):
            (scratch / "blobs/sha256").mkdir(exist_ok=True)
            (scratch / "blobs/sha256" / blob).write_bytes(b"x" * size)
            (scratch / "blobs/sha256/oci-put-blob7").write_bytes(b"x")
            raise RuntimeError
        return sorted(path.stat().st_size for path in (tmp_path / "kept").rglob(blob))

    for number in range(1, 7):
        found = fail(str(number), number)
    assert found == [3, 4, 5, 6], "four for a user"
    assert fail("large", 100, 50) == [3, 4, 5, 6]
    assert fail("more", 45, 50) == [45], "the quota has room for no more"
    assert not list((tmp_path / "kept").rglob("oci-put*"))
    for path in (tmp_path / "kept").iterdir():
        os.utime(path, (0, 0))
    kept.sweep()
    assert list((tmp_path / "kept").iterdir()) == []


def mixed(registry: Registry, image: Path, room: Path, name: str) -> str:
    """Push an image whose manifest is Docker's and whose layers are of OCI's types; return its reference."""
    manifest = json.loads((image / "manifest.json").read_bytes())
    kinds = ("application/vnd.oci.image.layer.v1.tar+gzip", "application/vnd.oci.image.layer.nondistributable.v1.tar")
    for number, layer in enumerate(manifest["layers"]):
        layer["mediaType"] = kinds[number % 2]
    registry.put_manifest(name, "odd", json.dumps(manifest).encode(), f"{oci.DOCKER}.distribution.manifest.v2+json")
    return f"{registry.address}/{name}:odd"


def test_a_docker_manifest_with_layers_of_oci(site: Site, registry: Registry, room: Path) -> None:
    oci.build(
        room / "image", [[oci.file(name, os.urandom(3 << 20))] for name in "ab"], docker=True, settings={"Env": ["A=b"]}
    )
    registry.push(room / "image", "app:1")
    reference = mixed(registry, room / "image", room, "app")
    files = lambda digest: registry.blob_file(room / "registry", digest)  # noqa: E731
    registry.disturb = cut(files, blobs(room / "image")[1], 2, 1 << 20)
    pulled = site.ask(ALICE, reference)
    assert "error" not in pulled, pulled
    assert pulled["env"] == {"A": "b"} and site.leftovers() == []
    assert site.ask(ALICE, reference, "look")["digest"] == pulled["digest"]


def test_such_an_image_behind_a_password(site: Site, guarded: Registry, room: Path) -> None:
    oci.build(room / "image", [[oci.file("a")]], docker=True)
    guarded.push(room / "image", "app:1", "alice")
    manifest = json.loads((room / "image/manifest.json").read_bytes())
    manifest["layers"][0]["mediaType"] = "application/vnd.oci.image.layer.v1.tar+gzip"
    body = json.dumps(manifest).encode()
    kind = f"{oci.DOCKER}.distribution.manifest.v2+json"

    def disturb(handler: Handler) -> bool:
        """Give the odd manifest to who has logged in: the registry takes none that is not its own."""
        if "/manifests/" not in handler.path or "Authorization" not in handler.headers:
            return False
        reply(handler, 200, body, kind)
        return True

    guarded.disturb = disturb
    reference = f"{guarded.address}/app:1"
    assert site.ask(ALICE, reference)["kind"] == "Denied"
    path = auth_file(room / "auth.json", guarded.address, "alice", "secret-a")
    os.chown(path, ALICE, ALICE)
    pulled = site.ask(ALICE, reference, REGISTRY_AUTH_FILE=str(path))
    assert "error" not in pulled, pulled


def test_an_index_in_an_index(site: Site, registry: Registry, image: Path) -> None:
    """As buildx writes it: a list that names a list, which has attestations beside its images."""
    digest = site.ask(ALICE, registry.push(image, "app:1"))["digest"]
    raw = (image / "manifest.json").read_bytes()
    index = f"{oci.OCI}.index.v1+json"
    attestation = {
        "mediaType": f"{oci.OCI}.manifest.v1+json", "digest": digest, "size": len(raw),
        "platform": {"os": "unknown", "architecture": "unknown"},
        "annotations": {"vnd.docker.reference.type": "attestation-manifest"},
    }  # fmt: skip
    real = {
        "mediaType": f"{oci.OCI}.manifest.v1+json", "digest": digest, "size": len(raw),
        "platform": {"os": "linux", "architecture": oci.ARCHITECTURE},
    }  # fmt: skip
    body = json.dumps({"schemaVersion": 2, "mediaType": index, "manifests": [attestation, real]}).encode()
    for level in range(6):
        registry.put_manifest("app", f"level{level}", body, index)
        pulled = site.ask(ALICE, f"{registry.address}/app:level{level}", "refresh")
        if level < 4:
            assert pulled["digest"] == digest, (level, pulled)
        else:
            assert "a list inside 4 lists of images" in pulled["error"]
        inner = {"mediaType": index, "digest": oci.digest(body), "size": len(body)}
        body = json.dumps({"schemaVersion": 2, "mediaType": index, "manifests": [inner]}).encode()


def test_layers_whose_type_is_wrong(site: Site, registry: Registry, room: Path) -> None:
    """Told by their first bytes: plain in the place of gzip, and the reverse."""
    plain, packed = oci.pack([oci.file("a")], ""), oci.pack([oci.file("b")])
    assert gzip.decompress(packed.data)
    lying = [oci.Packed(plain.data, plain.diff_id, "gzip"), oci.Packed(packed.data, packed.diff_id, "")]
    oci.build(room / "image", lying)
    pulled = site.ask(ALICE, registry.push(room / "image", "app:1"))
    assert "error" not in pulled, pulled
