"""Pulls from a real registry through a real service: once per digest, and silent when it is there."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from piolet.base.errors import ImageError
from piolet.images.store import locate

from tests.images.conftest import ALICE, BOB, Site, finish, needs_root
from tests.images.processes import children
from tests.support import oci
from tests.support.registry import Registry
from tests.support.waiting import wait_until


def test_pull_then_silence(site: Site, registry: Registry, image: Path) -> None:
    reference = registry.push(image, "team/app:1")
    first = site.ask(ALICE, reference)
    assert first["digest"].startswith("sha256:") and first["env"] == {"PATH": "/bin", "A": "b=c"}
    assert registry.requests
    registry.requests.clear()
    again = site.ask(ALICE, reference)
    by_digest = site.ask(ALICE, f"{registry.address}/team/app@{first['digest']}")
    looked = site.ask(ALICE, reference, "look")
    assert [again["digest"], by_digest["digest"], looked["digest"]] == [first["digest"]] * 3
    assert registry.requests == []
    site.ask(ALICE, reference, "refresh")
    assert registry.requests and not any("/blobs/" in request for request in registry.requests)
    assert site.leftovers() == []


def test_the_registry_may_be_down_for_what_is_there(site: Site, registry: Registry, image: Path) -> None:
    reference = registry.push(image, "app:1")
    site.ask(ALICE, reference)
    registry.stop()
    assert "error" not in site.ask(ALICE, reference)
    refused = site.ask(ALICE, f"{registry.address}/other:1")
    assert refused["kind"] == "RegistryUnreachable" and "connection refused" in refused["error"]


def test_a_look_writes_nothing(site: Site, registry: Registry, image: Path) -> None:
    reference = registry.push(image, "app:1")
    found = site.ask(ALICE, reference, "look")
    assert found["env"]["PATH"] == "/bin" and found["watch"] == []
    assert site.images() == [] and site.leftovers() == []


@pytest.mark.parametrize("docker", [False, True], ids=["oci", "docker"])
@pytest.mark.parametrize("compression", ["gzip", "zstd", ""])
def test_kinds_of_images(site: Site, registry: Registry, room: Path, docker: bool, compression: str) -> None:
    if docker and compression == "zstd":
        pytest.skip("Docker's manifests know no zstd")
    digest = oci.build(room / "i", [oci.pack([oci.file("a", b"content")], compression)], docker=docker)
    answer = site.ask(ALICE, registry.push(room / "i", "app:1"))
    assert answer["digest"] == digest, answer
    content = subprocess.run(["unsquashfs", "-cat", site.store / site.images()[0], "a"], capture_output=True)
    assert content.stdout == b"content"


@needs_root()
def test_eight_clients_of_two_users_one_conversion(
    site: Site, registry: Registry, room: Path, counted: Callable[[], int]
) -> None:
    site.stop()
    site.settings["mksquashfs"] = str(room / "mksquashfs")
    site.start()
    oci.build(room / "big", [[oci.file(f"f{n}", os.urandom(1 << 20)) for n in range(12)]])
    reference = registry.push(room / "big", "app:1")
    clients = [site.begin(uid, reference) for uid in (ALICE, BOB) * 4]
    answers = [finish(client) for client in clients]
    assert {answer.get("digest") for answer in answers} == {answers[0]["digest"]} != {None}
    assert counted() == 1
    assert sum("/blobs/" in request for request in registry.requests) <= 2, "each blob once"
    registry.requests.clear()
    assert "error" not in site.ask(ALICE, reference) and "error" not in site.ask(BOB, reference)
    assert registry.requests == [] and counted() == 1 and site.leftovers() == []


def test_two_tags_of_one_image_are_one_conversion(
    site: Site, registry: Registry, image: Path, room: Path, counted: Callable[[], int]
) -> None:
    site.stop()
    site.settings["mksquashfs"] = str(room / "mksquashfs")
    site.start()
    digests = {site.ask(ALICE, registry.push(image, name))["digest"] for name in ("app:1", "app:2", "other:1")}
    assert len(digests) == 1 and counted() == 1 and len(site.images()) == 1


def test_a_list_of_platforms(site: Site, registry: Registry, room: Path) -> None:
    entries = []
    for architecture in ("arm64", "amd64"):
        digest = oci.build(room / architecture, [[oci.file(architecture)]], architecture=architecture)
        registry.push(room / architecture, f"app:{architecture}")
        size = (room / architecture / "manifest.json").stat().st_size
        platform = {"os": "linux", "architecture": architecture}
        kind = f"{oci.OCI}.manifest.v1+json"
        entries.append({"mediaType": kind, "digest": digest, "size": size, "platform": platform})
    body = {"schemaVersion": 2, "mediaType": f"{oci.OCI}.index.v1+json", "manifests": entries}
    registry.put_manifest("app", "both", json.dumps(body).encode(), f"{oci.OCI}.index.v1+json")
    mine = oci.ARCHITECTURE
    wanted = next(entry["digest"] for entry in entries if entry["platform"] == {"os": "linux", "architecture": mine})
    assert site.ask(ALICE, f"{registry.address}/app:both")["digest"] == wanted
    listed = oci.digest(json.dumps(body).encode())
    assert site.ask(ALICE, f"{registry.address}/app@{listed}")["digest"] == wanted
    body["manifests"] = [entry for entry in entries if entry["digest"] != wanted]
    registry.put_manifest("app", "other", json.dumps(body).encode(), f"{oci.OCI}.index.v1+json")
    refused = site.ask(ALICE, f"{registry.address}/app:other")
    assert "not there for linux/" + mine in refused["error"] and "linux/" in refused["hint"]


def test_wrong_architecture(site: Site, registry: Registry, room: Path) -> None:
    oci.build(room / "i", [[oci.file("a")]], architecture="s390x")
    reference = registry.push(room / "i", "app:1")
    for mode in ("look", "pull"):
        refused = site.ask(ALICE, reference, mode)
        assert "made for linux/s390x" in refused["error"] and "this machine is linux/" in refused["error"]
    assert site.images() == [] and site.leftovers() == []


def test_a_broken_layer_in_a_real_registry(site: Site, registry: Registry, room: Path) -> None:
    oci.build(room / "i", [[oci.file("a")], b"this is not a tar archive" * 100])
    refused = site.ask(ALICE, registry.push(room / "i", "app:1"))
    assert "layer 2 of 2 (sha256:" in refused["error"] and "not a tar archive" in refused["error"]
    assert site.images() == [] and site.leftovers() == []


def test_device_nodes_are_left_out_and_counted(site: Site, registry: Registry, room: Path) -> None:
    oci.build(room / "i", [[oci.device("dev/null"), oci.device("pipe", tarfile.FIFOTYPE), oci.file("zero", mode=0)]])
    pulled = site.piolet(ALICE, "image", "pull", registry.push(room / "i", "app:1"))
    assert "left out 2 device nodes, FIFOs and sockets" in pulled.stderr
    listed = subprocess.run(["unsquashfs", "-ll", site.store / site.images()[0]], capture_output=True, text=True)
    assert "null" not in listed.stdout and "pipe" not in listed.stdout and "---------- root/" in listed.stdout


def test_a_blob_that_is_not_its_digest(site: Site, registry: Registry, room: Path) -> None:
    layer = oci.pack([oci.file("a", b"x" * 1000)])
    oci.build(room / "i", [layer])
    reference = registry.push(room / "i", "app:1")
    blob = registry.blob_file(room / "registry", oci.digest(layer.data))
    blob.write_bytes(b"\0" * len(layer.data))
    refused = site.ask(ALICE, reference)
    assert "igest" in refused["error"], refused
    assert site.images() == [] and site.leftovers() == []


@needs_root()
def test_what_lies_in_the_store(site: Site, registry: Registry, image: Path) -> None:
    answer = site.ask(ALICE, registry.push(image, "app:1"))
    sqsh = site.store / site.images()[0]
    assert stat.S_IMODE(sqsh.stat().st_mode) == 0o600 and sqsh.stat().st_uid == 4242
    assert stat.S_IMODE(site.store.stat().st_mode) == 0o711
    # Everybody can see whether the answer is stale, and the node's server can check who may use it.
    check = f"import os, sys; [os.stat(p) for p in {answer['watch']!r}]; open({str(sqsh)[:-5] + '.access'!r}).read()"
    assert len(answer["watch"]) == 2
    subprocess.run(["setpriv", "--reuid=4999", "--clear-groups", "/usr/bin/python3", "-c", check], check=True, cwd="/")
    assert locate(str(site.store), answer["digest"], BOB) == str(sqsh)
    with pytest.raises(ImageError, match="not in the store"):
        locate(str(site.store), "sha256:" + "0" * 64, BOB)
    with pytest.raises(ImageError, match="not in the store"):
        locate(str(site.store), "../../x", BOB)


def test_a_client_that_leaves_ends_the_pull(site: Site, registry: Registry, room: Path) -> None:
    script = room / "slow"
    script.write_text("#!/bin/sh\nexec sleep 1000\n")
    script.chmod(0o755)
    site.stop()
    site.settings["mksquashfs"] = str(script)
    site.start()
    oci.build(room / "i", [[oci.file("a")]])
    client = site.begin(ALICE, registry.push(room / "i", "app:1"))
    wait_until(lambda: "sleep 1000" in children(site), what="the conversion")
    client.kill()
    client.communicate()
    wait_until(lambda: site.leftovers() == [] and "sleep 1000" not in children(site), what="the end of the pull")
