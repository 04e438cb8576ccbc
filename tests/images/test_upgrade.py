"""A store of an older release: used as it is, and its images converted again; what cannot be had again stays."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from piolet.base.errors import ImageError
from piolet.images.conversion import Requester
from piolet.images.importer import Importer
from piolet.images.reference import parse
from piolet.images.settings import ImagesConfig
from piolet.images.store import REPLACED_KEPT_S, Access, Store, locate
from piolet.images.verify import verify

from tests.images.conftest import ALICE, BOB, SERVICE, Site, needs_root
from tests.images.test_users import credentials
from tests.support import oci
from tests.support.oldstore import age, ids
from tests.support.registry import Registry
from tests.support.waiting import wait_until

pytestmark = needs_root()
RENEW = ("image", "prune", "--old-format")


def snapshot(site: Site) -> dict[str, bytes]:
    """Return what lies in the store, without what says who is at work."""
    files = [path for path in site.store.rglob("*") if path.is_file() and path.parent.name not in ("leases", "tmp")]
    return {str(path): path.read_bytes() for path in files if path.name != "swept"}


def pulled(
    site: Site, registry: Registry, image: Path, name: str, more: dict[str, str] | None = None
) -> tuple[str, str]:
    """Return the reference and the digest of an image that was pulled, and aged."""
    reference = registry.push(image, name, "alice" if more else None)
    digest = site.ask(ALICE, reference, **more or {})["digest"]
    age(site.store, digest)
    return reference, digest


def file_of(site: Site, digest: str) -> Path:
    return Path(Store(str(site.store)).image_path(digest))


def test_a_store_of_an_older_release_is_used(site: Site, registry: Registry, image: Path) -> None:
    """By a service that finds it when it starts; nothing is pulled, and nothing is made up."""
    reference, digest = pulled(site, registry, image, "app:1")
    assert ids(file_of(site, digest)) == 1
    site.stop()
    before = snapshot(site)
    site.start()
    registry.requests.clear()
    for user in (ALICE, BOB):
        assert locate(str(site.store), digest, user)
    answer = site.ask(ALICE, reference)
    assert answer["digest"] == digest and answer["env"] == {"PATH": "/bin", "A": "b=c"}
    row = site.piolet(ALICE, "image", "list").stdout.splitlines()[1]
    assert row.startswith(reference) and "public, yours" in row
    verified = site.piolet(ALICE, "image", "verify", "--all")
    assert verified.returncode == 0 and "no record: converted by an older release" in verified.stdout
    assert registry.requests == [] and snapshot(site) == before


def test_public_images_are_converted_again_by_root(site: Site, registry: Registry, image: Path) -> None:
    reference, digest = pulled(site, registry, image, "app:1")
    oci.build(site.room / "new", [[oci.file("new")]])
    new = site.ask(ALICE, registry.push(site.room / "new", "new:1"))["digest"]
    file, last = file_of(site, digest), time.time() - 86400
    os.utime(file.with_suffix(".json"), (last, last))
    untouched = snapshot(site)

    assert "converted 0 of 0" in site.piolet(ALICE, *RENEW).stdout, "a public image is not hers"
    dry = site.piolet(0, *RENEW, "--dry-run").stdout
    assert reference in dry and "to be converted again" in dry and "would convert 1 of 1" in dry
    assert new[:19] not in dry and snapshot(site) == untouched

    with file.open("rb") as held:
        done = site.piolet(0, *RENEW)
        assert done.returncode == 0 and "converted 1 of 1 images of an older release" in done.stdout, done
        assert held.read(4) == b"hsqs"
        (kept,) = (site.store / "replaced").iterdir()
        assert os.path.samestat(os.fstat(held.fileno()), kept.stat()), "on NFS it can be read as long as it has a name"
    changed = {path for path, data in snapshot(site).items() if untouched.get(path) != data}
    assert changed == {str(file), str(file.with_suffix(".json")), str(kept)}, "references and rights are as they were"
    assert ids(file) == 2 and file.stat().st_mode & 0o777 == 0o600 and file.stat().st_uid == SERVICE
    assert abs(file.with_suffix(".json").stat().st_mtime - last) < 2, "nobody has asked for it"
    assert site.piolet(ALICE, "image", "verify", digest).stdout.count(" good") == 1
    assert "converted 0 of 0" in site.piolet(0, *RENEW).stdout and site.leftovers() == []
    registry.requests.clear()
    assert site.ask(BOB, f"{registry.address}/app@{digest}")["digest"] == digest and registry.requests == []


def test_the_same_layers_give_the_same_file(site: Site, registry: Registry, image: Path) -> None:
    """What takes the place of an old image is what a first pull gives."""
    reference = registry.push(image, "app:1")
    digest = site.ask(ALICE, reference)["digest"]
    first, record = file_of(site, digest).read_bytes(), Store(str(site.store)).metadata(digest)
    age(site.store, digest)
    assert file_of(site, digest).read_bytes() != first
    assert site.piolet(0, *RENEW).returncode == 0
    assert file_of(site, digest).read_bytes() == first and Store(str(site.store)).metadata(digest) == record


def test_a_private_image_takes_its_users_credentials(site: Site, guarded: Registry, image: Path) -> None:
    alice = credentials(site, guarded, "alice", "secret-a", ALICE)
    reference, digest = pulled(site, guarded, image, "secret:1", alice)
    before = snapshot(site)
    for who in (0, ALICE):
        refused = site.piolet(who, *RENEW)
        assert refused.returncode == 1 and "not converted" in refused.stdout and reference in refused.stdout, refused
        assert f"piolet: warning: {reference}: " in refused.stderr and "1 of 1 images could not" in refused.stderr
        assert snapshot(site) == before, "what cannot be had again is as it was"
    # Bob may pull it, but it is not his here: he neither sees it nor has it converted, not even by its digest.
    bob = credentials(site, guarded, "bob", "secret-b", BOB)
    assert "converted 0 of 0" in site.piolet(BOB, *RENEW, **bob).stdout
    assert "yours to convert again" in site.ask(BOB, f"{guarded.address}/secret@{digest}", "renew", **bob)["error"]
    assert snapshot(site) == before
    assert "converted 1 of 1" in site.piolet(ALICE, *RENEW, **alice).stdout
    assert ids(file_of(site, digest)) == 2
    assert Store(str(site.store)).access(digest) == Access(False, (ALICE,), ALICE)


def test_root_gets_no_rights_by_it(site: Site, guarded: Registry, image: Path) -> None:
    alice = credentials(site, guarded, "alice", "secret-a", ALICE)
    _, digest = pulled(site, guarded, image, "secret:1", alice)
    roots = credentials(site, guarded, "bob", "secret-b", 0)
    assert "converted 1 of 1" in site.piolet(0, *RENEW, **roots).stdout
    assert Store(str(site.store)).access(digest) == Access(False, (ALICE,), ALICE)


def test_an_image_that_its_registry_no_longer_has_stays(site: Site, registry: Registry, image: Path) -> None:
    reference, digest = pulled(site, registry, image, "app:1")
    registry.stop()
    before = snapshot(site)
    done = site.piolet(0, *RENEW)
    assert done.returncode == 1 and "connection refused" in done.stderr and "hint: " in done.stderr
    assert snapshot(site) == before and site.ask(ALICE, reference)["digest"] == digest
    assert site.leftovers() == []


def test_an_imported_image_is_converted_by_importing_it_again(site: Site, image: Path) -> None:
    oci.archive(image, site.room / "a.tar")
    bring = ("image", "import", str(site.room / "a.tar"), "--name", "mine:1")
    assert site.piolet(ALICE, *bring).returncode == 0
    (digest,) = Store(str(site.store)).digests()
    age(site.store, digest)
    before = snapshot(site)
    for user in (0, ALICE):
        done = site.piolet(user, *RENEW)
        assert done.returncode == 0 and "imported" in done.stdout and "converted 0 of 1" in done.stdout, done
    assert snapshot(site) == before
    assert site.piolet(ALICE, *bring).returncode == 0
    assert ids(file_of(site, digest)) == 2 and "converted 0 of 0" in site.piolet(ALICE, *RENEW).stdout
    assert Store(str(site.store)).access(digest) == Access(False, (ALICE,), ALICE)


def test_two_who_convert_again_at_once(site: Site, guarded: Registry, image: Path) -> None:
    alice = credentials(site, guarded, "alice", "secret-a", ALICE)
    _, digest = pulled(site, guarded, image, "secret:1", alice)
    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(lambda _: site.piolet(ALICE, *RENEW, **alice), range(3)))
    assert [one.returncode for one in done] == [0] * 3 and any("converted 1 of 1" in one.stdout for one in done), done
    assert ids(file_of(site, digest)) == 2 and len(list((site.store / "replaced").iterdir())) == 1


def test_a_service_that_dies_in_between(site: Site, registry: Registry, image: Path) -> None:
    """However far it came: the image is there, and the next one tidies up and does the rest."""
    _, digest = pulled(site, registry, image, "app:1")
    held = file_of(site, digest).with_suffix(".json")
    aged = json.loads(held.read_text())
    # As far as the new record: the files are there, and no node compares one with the record of the other.
    assert "sha256" not in aged
    site.settings["mksquashfs"] = str(site.room / "slow")
    (site.room / "slow").write_text("#!/bin/sh\nexec sleep 60\n")
    (site.room / "slow").chmod(0o755)
    site.stop()
    site.start()
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(site.piolet, 0, *RENEW)
        wait_until(lambda: bool(list((site.store / "tmp").rglob("blobs/*"))), what="the conversion")
        assert site.process is not None
        site.process.kill()
        site.process.wait()
        assert asking.result().returncode == 1
    assert ids(file_of(site, digest)) == 1 and json.loads(held.read_text()) == aged
    del site.settings["mksquashfs"]
    site.start()
    assert "converted 1 of 1" in site.piolet(0, *RENEW).stdout and ids(file_of(site, digest)) == 2


def test_an_image_that_is_removed_meanwhile_does_not_come_back(tmp_path: Path) -> None:
    importer = Importer(ImagesConfig(), str(tmp_path / "store"))
    importer.store.prepare()
    digest = "sha256:" + "ab" * 32
    who = Requester(0, renews=True)
    with pytest.raises(ImageError, match="removed while it was converted again"):
        asyncio.run(importer._squash_now(parse(f"quay.io/app@{digest}"), digest, {}, "/nowhere", who, lambda _: None))
    sqsh = tmp_path / "store/tmp/new"
    sqsh.write_bytes(b"new")
    with pytest.raises(ImageError, match="removed while it was converted again"):
        importer.store.replace(digest, str(sqsh), {"sources": []})
    assert importer.store.digests() == [] and importer.store.orphans() == []


def test_converted_files_are_kept_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path / "store"))
    store.prepare()
    digest = "sha256:" + "ab" * 32
    for number in range(2):
        sqsh = tmp_path / "store/tmp/new"
        sqsh.write_bytes(b"hsqs%d" % number)
        if number == 0:
            store.publish(digest, str(sqsh), {"sha256": "of the old one", "sources": ["a/b"]}, Access(True, (1,), 1))
        else:
            store.replace(digest, str(sqsh), {"sha256": "of the new one", "sources": ["c/d"]})
    assert Path(store.image_path(digest)).read_bytes() == b"hsqs1"
    assert store.metadata(digest) == {"sha256": "of the new one", "sources": ["a/b", "c/d"]}
    (kept,) = (tmp_path / "store/replaced").iterdir()
    assert kept.read_bytes() == b"hsqs0"
    store.remove_replaced()
    assert kept.exists()
    later = time.time() + REPLACED_KEPT_S + 60
    monkeypatch.setattr(time, "time", lambda: later)
    store.remove_replaced()
    assert not kept.exists() and store.present(digest)


def test_an_image_that_is_converted_again_while_it_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old record was read, and then the new file: it is not damaged."""
    store = Store(str(tmp_path / "store"))
    store.prepare()
    digest = "sha256:" + "ab" * 32
    sqsh = tmp_path / "store/tmp/new"
    records = [{"sha256": hashlib.sha256(data).hexdigest(), "size": 3, "sources": []} for data in (b"old", b"new")]
    sqsh.write_bytes(b"old")
    store.publish(digest, str(sqsh), records[0], Access(True, (1,), 1))
    sqsh.write_bytes(b"new")
    opens = store.image_path

    def image_path(wanted: str) -> str:
        if sqsh.exists():
            monkeypatch.setattr(store, "image_path", opens)
            store.replace(digest, str(sqsh), records[1])
        return opens(wanted)

    monkeypatch.setattr(store, "image_path", image_path)
    (entry,) = verify(store, [{"digest": digest, "references": [], "size": 3}], lambda _: None, threading.Event())
    assert not sqsh.exists() and entry["state"] == "good"


def test_no_file_is_beside_the_record_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills up, or a power cut, at any point: nodes either find the right record, or none."""
    store = Store(str(tmp_path / "store"))
    store.prepare()
    digest = "sha256:" + "ab" * 32
    writes = Store._write
    for point in range(4):
        sqsh = tmp_path / "store/tmp/new"
        sqsh.write_bytes(b"old")
        store.publish(digest, str(sqsh), {"sha256": "old", "size": 3, "sources": []}, Access(True, (1,), 1))
        sqsh.write_bytes(b"new")
        left = [point]

        def write(self: Store, *arguments: object, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise OSError(28, "No space left on device")
            writes(self, *arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(Store, "_write", write)
        if point < 2:
            with pytest.raises(OSError, match="No space"):
                store.replace(digest, str(sqsh), {"sha256": "new", "size": 3, "sources": []})
        else:
            store.replace(digest, str(sqsh), {"sha256": "new", "size": 3, "sources": []})
        monkeypatch.setattr(Store, "_write", writes)
        content = Path(store.image_path(digest)).read_text()
        assert store.metadata(digest).get("sha256") in (None, content), point
        assert store.present(digest)
