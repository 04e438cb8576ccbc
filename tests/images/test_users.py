"""Who may use what: images pulled with credentials, and attempts to get at somebody else's."""

from __future__ import annotations

import http.server
import os
import shutil
import time
from pathlib import Path

import pytest
from piolet.base.errors import ImageError
from piolet.images.reference import parse
from piolet.images.store import Access, Store, locate

from tests.images.conftest import ALICE, BOB, SERVICE, Site, needs_root
from tests.support import oci
from tests.support.registry import Registry, auth_file, reply, sham
from tests.support.waiting import wait_until

pytestmark = needs_root()


def credentials(site: Site, registry: Registry, user: str, password: str, uid: int) -> dict[str, str]:
    """Write the user's auth.json; return the variable that names it."""
    path = auth_file(site.room / f"{user}.json", registry.address, user, password)
    shutil.chown(path, uid, uid)
    return {"REGISTRY_AUTH_FILE": str(path)}


def test_a_private_image_is_its_users_own(site: Site, guarded: Registry, image: Path) -> None:
    reference = guarded.push(image, "secret/app:1", "alice")
    refused = site.ask(BOB, reference)
    assert "error" in refused and "login" in refused["hint"], refused
    alice = credentials(site, guarded, "alice", "secret-a", ALICE)
    pulled = site.ask(ALICE, reference, **alice)
    assert "error" not in pulled
    assert locate(str(site.store), pulled["digest"], ALICE).endswith(".sqsh")
    with pytest.raises(ImageError, match="another user's credentials"):
        locate(str(site.store), pulled["digest"], BOB)
    # By tag, by digest and by looking: B learns no more than before A's pull.
    for name in (reference, f"{guarded.address}/secret/app@{pulled['digest']}"):
        for mode in ("pull", "look", "refresh"):
            assert "error" in site.ask(BOB, name, mode)
    assert "app" not in site.piolet(BOB, "image", "list").stdout
    assert "secret/app:1" in site.piolet(ALICE, "image", "list").stdout
    for path in site.store.rglob("*"):
        if path.is_file():
            assert b"secret-a" not in path.read_bytes() and b"YWxpY2" not in path.read_bytes()
    # A's own later request is silent; B comes in with credentials of their own, and nothing is converted again.
    guarded.requests.clear()
    assert "error" not in site.ask(ALICE, reference) and guarded.requests == []
    before = (site.store / site.images()[0]).stat()
    bob = credentials(site, guarded, "bob", "secret-b", BOB)
    assert "error" not in site.ask(BOB, reference, **bob)
    assert (site.store / site.images()[0]).stat().st_ino == before.st_ino
    assert locate(str(site.store), pulled["digest"], BOB)
    with pytest.raises(ImageError):
        locate(str(site.store), pulled["digest"], 4999)


def test_what_is_there_needs_no_credentials(site: Site, guarded: Registry, image: Path) -> None:
    """Pulled on a login node; the job's node has none of the files that podman login wrote there."""
    reference = guarded.push(image, "secret/app:1", "alice")
    named = f"alice@{guarded.address}#secret/app:1"
    pulled = site.ask(ALICE, named, **credentials(site, guarded, "alice", "secret-a", ALICE))
    assert "error" not in pulled
    guarded.requests.clear()
    for name in (named, reference):
        for mode in ("pull", "look"):
            assert site.ask(ALICE, name, mode)["digest"] == pulled["digest"]
    assert guarded.requests == []
    assert "no credentials of 'alice'" in site.ask(BOB, named)["error"], "what is Alice's is not there for Bob"
    assert "no credentials of 'alice'" in site.ask(ALICE, named, "refresh")["error"]


def test_wrong_password(site: Site, guarded: Registry, image: Path) -> None:
    reference = guarded.push(image, "app:1", "alice")
    refused = site.ask(ALICE, reference, **credentials(site, guarded, "alice", "wrong", ALICE))
    assert "unauthorized" in refused["error"] and "login" in refused["hint"]
    assert "wrong" not in refused["error"] and "wrong" not in site.log


def test_credentials_of_enroot_and_of_a_helper(site: Site, guarded: Registry, image: Path) -> None:
    reference, home = guarded.push(image, "app:1", "alice"), site.room / "home"
    (home / ".config/enroot").mkdir(parents=True)
    netrc = home / ".config/enroot/.credentials"
    netrc.write_text(f"machine {guarded.address} login alice password $(echo secret-a)\n")
    refused = site.ask(ALICE, reference, HOME=str(home))
    assert refused["kind"] == "Denied" and "its password is a command, which Piolet does not run" in refused["hint"]
    netrc.write_text("machine 127.0.0.1 login alice password wrong\n")
    refused = site.ask(ALICE, reference, HOME=str(home))
    assert f"the credentials for it in {netrc} were used, and not accepted" in refused["hint"]
    netrc.write_text("machine 127.0.0.1 login alice password secret-a\n")
    assert "error" not in site.ask(ALICE, reference, HOME=str(home))
    helper = home / "docker-credential-mine"
    helper.write_text(f"""#!/bin/sh\nid -u >{home}/as; echo '{{"Username": "bob", "Secret": "secret-b"}}'\n""")
    helper.chmod(0o755)
    (home / ".docker").mkdir()
    (home / ".docker/config.json").write_text('{"credHelpers": {"%s": "mine"}}' % guarded.address)  # noqa: UP031
    shutil.chown(home, BOB)
    bob = {"HOME": str(home), "PATH": f"{home}:{os.environ['PATH']}"}
    assert "error" not in site.ask(BOB, reference, **bob)
    assert (home / "as").read_text() == f"{BOB}\n", "it ran as the user, beside the client"


def test_an_anonymous_grant_makes_it_public(site: Site, registry: Registry, image: Path) -> None:
    reference = registry.push(image, "app:1")
    pulled = site.ask(ALICE, reference, **credentials(site, registry, "alice", "any", ALICE))
    with pytest.raises(ImageError):
        locate(str(site.store), pulled["digest"], BOB)
    before = (site.store / site.images()[0]).stat()
    assert "error" not in site.ask(BOB, reference)
    assert (site.store / site.images()[0]).stat().st_ino == before.st_ino
    assert locate(str(site.store), pulled["digest"], 4999)


def test_a_manifest_alone_opens_nothing(site: Site, guarded: Registry, image: Path) -> None:
    """B shows A's manifest from a registry of B's own, which has none of the blobs."""
    reference = guarded.push(image, "secret:1", "alice")
    pulled = site.ask(ALICE, reference, **credentials(site, guarded, "alice", "secret-a", ALICE))
    manifest = (image / "manifest.json").read_bytes()

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        if "/manifests/" in handler.path:
            reply(handler, 200, manifest, f"{oci.OCI}.manifest.v1+json")
        else:
            reply(handler, 200 if handler.path == "/v2/" else 404, b"{}", "application/json")

    with sham(answer) as address:
        for name in (f"{address}/secret:1", f"{address}/secret@{pulled['digest']}"):
            assert "error" in site.ask(BOB, name)
    with pytest.raises(ImageError):
        locate(str(site.store), pulled["digest"], BOB)


def test_a_users_registry_on_loopback_means_nothing_to_others(site: Site, registry: Registry, image: Path) -> None:
    reference = registry.push(image, "app:1")
    site.ask(ALICE, reference)
    registry.requests.clear()
    assert "error" not in site.ask(BOB, reference)
    assert registry.requests, "what Alice's registry said of a tag is not Bob's answer"


def test_removal(site: Site, registry: Registry, guarded: Registry, image: Path) -> None:
    public = registry.push(image, "app:1")
    site.ask(ALICE, public)
    site.ask(BOB, public)
    oci.build(site.room / "other", [[oci.file("other")]])
    private = guarded.push(site.room / "other", "secret:1", "alice")
    digest = site.ask(ALICE, private, **credentials(site, guarded, "alice", "secret-a", ALICE))["digest"]
    site.ask(BOB, private, **credentials(site, guarded, "bob", "secret-b", BOB))
    assert len(site.images()) == 2
    assert "yours to see" in site.piolet(4999, "image", "rm", private).stderr
    assert "other users keep it" in site.piolet(BOB, "image", "rm", private).stdout
    with pytest.raises(ImageError):
        locate(str(site.store), digest, BOB)
    assert locate(str(site.store), digest, ALICE)
    assert "and its image" in site.piolet(ALICE, "image", "rm", digest[:20]).stdout
    assert len(site.images()) == 1
    assert site.piolet(0, "image", "prune", "--older-than", "1h").stdout.startswith("removed 0")
    assert "would remove 1 images" in site.piolet(0, "image", "prune", "--older-than", "0s", "--dry-run").stdout
    assert len(site.images()) == 1
    assert "removed 1 images" in site.piolet(0, "image", "prune", "--older-than", "0s").stdout
    assert site.images() == [] and not list((site.store / "refs").rglob("*.json"))


def test_a_private_image_that_its_first_user_gives_up_is_the_next_ones(
    site: Site, guarded: Registry, image: Path
) -> None:
    private = guarded.push(image, "secret:1", "alice")
    site.ask(ALICE, private, **credentials(site, guarded, "alice", "secret-a", ALICE))
    digest = site.ask(BOB, private, **credentials(site, guarded, "bob", "secret-b", BOB))["digest"]
    assert "2 users, yours" in site.piolet(ALICE, "image", "list").stdout
    assert "yours" not in site.piolet(BOB, "image", "list").stdout
    assert "other users keep it" in site.piolet(ALICE, "image", "rm", private).stdout
    assert Store(str(site.store)).access(digest) == Access(False, (BOB,), BOB)


def test_no_user_removes_a_public_image(site: Site, registry: Registry, image: Path) -> None:
    """Neither who pulled it first nor anybody else, in any way: another's queued job may need it."""
    reference = registry.push(image, "app:1")
    digest = site.ask(ALICE, reference)["digest"]
    # As the service files what it pulled from a registry that is not on loopback.
    store = Store(str(site.store))
    store.file_reference(parse(f"quay.io/app@{digest}"), digest, None)
    tag = parse("quay.io/app:1")
    store.file_reference(tag, digest, None)
    for path in (site.store / "refs/public").iterdir():
        shutil.chown(path, SERVICE, SERVICE)
    for user in (ALICE, BOB):
        for name in (str(tag), digest, reference):
            done = site.piolet(user, "image", "rm", name)
            if done.returncode == 0:
                assert user == ALICE and "it is public, and stays for everybody" in done.stdout, done
            else:
                unknown = name == reference  # Bob's never, and Alice has just given it up
                assert ("yours to see" if unknown else "only root or the store's account") in done.stderr, done
            assert site.ask(BOB, str(tag), "known")["digest"] == digest, (user, name)
        assert "removed 0 images" in site.piolet(user, "image", "prune", "--older-than", "0s").stdout
    assert locate(str(site.store), digest, BOB) and len(site.images()) == 1
    assert Store(str(site.store)).access(digest) == Access(True, (), ALICE, True)
    assert "goes by itself" in site.piolet(ALICE, "image", "rm", digest).stderr, "there is nothing left to give up"
    assert "and its image" in site.piolet(0, "image", "rm", digest).stdout
    assert site.images() == []


def test_public_images_go_when_nobody_asks_for_them(
    site: Site, registry: Registry, guarded: Registry, image: Path
) -> None:
    site.stop()
    site.settings["public_idle_days"] = 2
    site.start()
    old = site.ask(ALICE, registry.push(image, "old:1"))["digest"]
    oci.build(site.room / "other", [[oci.file("other")]])
    new = site.ask(ALICE, registry.push(site.room / "other", "new:1"))["digest"]
    oci.build(site.room / "third", [[oci.file("third")]])
    private = guarded.push(site.room / "third", "secret:1", "alice")
    own = site.ask(ALICE, private, **credentials(site, guarded, "alice", "secret-a", ALICE))["digest"]
    before = time.time() - 3 * 86400
    for digest in (old, own):
        os.utime(site.store / f"{digest.replace(':', '-')}.json", (before, before))
    site.stop()
    site.start()  # it looked an hour ago
    site.stop()
    assert len(site.images()) == 3
    os.utime(site.store / "swept", (before, before))
    site.start()
    wait_until(lambda: "removed 1 public images" in site.log, what="the daily look")
    assert sorted(Store(str(site.store)).digests()) == sorted([new, own])


def test_a_quota(site: Site, registry: Registry, image: Path) -> None:
    site.stop()
    site.settings["quota_images"] = 1
    site.settings["quota"] = "1MiB"
    site.start()
    first = registry.push(image, "app:1")
    assert "error" not in site.ask(ALICE, first)
    oci.build(site.room / "other", [[oci.file("other")]])
    second = registry.push(site.room / "other", "other:1")
    refused = site.ask(ALICE, second)
    assert "you have 1 images of your own in the store, and the quota is 1" in refused["error"]
    assert "piolet image rm" in refused["hint"] and site.leftovers() == []
    oci.archive(image, site.room / "a.tar")
    assert "the quota is 1" in site.piolet(ALICE, "image", "import", str(site.room / "a.tar"), "--name", "x").stderr
    assert "error" not in site.ask(ALICE, first), "what is there may be used"
    assert "error" not in site.ask(BOB, second), "each has a quota of their own"
    assert "error" not in site.ask(ALICE, second), "and what another pulled is no charge"
    # What one gives up is given back, but not without end: the images are public, and stay.
    oci.build(site.room / "third", [[oci.file("third")]])
    third = registry.push(site.room / "third", "third:1")
    assert "it is public, and stays" in site.piolet(ALICE, "image", "rm", first).stdout
    assert "error" not in site.ask(ALICE, third)
    assert "it is public, and stays" in site.piolet(ALICE, "image", "rm", third).stdout
    oci.build(site.room / "fourth", [[oci.file("fourth")]])
    fourth = registry.push(site.room / "fourth", "fourth:1")
    assert "you pulled and gave up 2 images that are public and still in the store" in site.ask(ALICE, fourth)["error"]
    # By size, as soon as it is known and before anything is fetched.
    oci.build(site.room / "big", [[oci.file("big", os.urandom(2 << 20))]])
    refused = site.ask(4303, registry.push(site.room / "big", "big:1"))
    assert "take 0 B of 1.0 MiB, the quota" in refused["error"] and "of 2.0 MiB" in refused["error"], refused
    assert not any("pulling" in text for text in refused["said"])
    assert "error" not in site.ask(0, f"{registry.address}/big:1"), "root has none"
    # And of an archive, whose size nobody knows before, no more is written than there is room for.
    oci.archive(site.room / "big", site.room / "big.tar")
    said = site.piolet(4303, "image", "import", str(site.room / "big.tar"), "--name", "big").stderr
    assert "larger than 1.0 MiB, the limit" in said and "quota" in said, said
    assert site.leftovers() == []


def test_an_image_used_by_its_removed_store(site: Site, registry: Registry, image: Path) -> None:
    """An image that is removed while it is open stays readable for who has it open, and can be pulled again."""
    reference = registry.push(image, "app:1")
    site.ask(ALICE, reference)
    with (site.store / site.images()[0]).open("rb") as held:
        assert "and its image" in site.piolet(0, "image", "rm", site.ask(ALICE, reference)["digest"]).stdout
        assert held.read(4) == b"hsqs"
    assert "error" not in site.ask(ALICE, reference) and len(site.images()) == 1
