"""Who may use what: images pulled with credentials, and attempts to get at somebody else's."""

from __future__ import annotations

import http.server
import shutil
from pathlib import Path

import pytest
from piolet.environment.images.store import locate
from piolet.errors import ImageError

from tests.images.conftest import ALICE, BOB, Site, needs_root
from tests.support import oci
from tests.support.registry import Registry, auth_file, reply, sham

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
    refused = site.piolet(BOB, "image", "rm", site.ask(BOB, public)["digest"])
    assert refused.returncode == 1 and "only root or uid 4301" in refused.stderr
    assert "yours to see" in site.piolet(4999, "image", "rm", private).stderr
    assert "other users keep it" in site.piolet(BOB, "image", "rm", private).stdout
    with pytest.raises(ImageError):
        locate(str(site.store), digest, BOB)
    assert locate(str(site.store), digest, ALICE)
    assert "and its image" in site.piolet(ALICE, "image", "rm", digest[:20]).stdout
    assert len(site.images()) == 1
    assert "other references" in site.piolet(ALICE, "image", "rm", public).stdout
    assert "stays" in site.piolet(BOB, "image", "rm", public).stdout
    assert site.piolet(0, "image", "prune", "--older-than", "1h").stdout.startswith("removed 0")
    assert "would remove 1 images" in site.piolet(0, "image", "prune", "--older-than", "0s", "--dry-run").stdout
    assert len(site.images()) == 1
    assert "removed 1 images" in site.piolet(0, "image", "prune", "--older-than", "0s").stdout
    assert site.images() == [] and not list((site.store / "refs").rglob("*.json"))


def test_an_image_used_by_its_removed_store(site: Site, registry: Registry, image: Path) -> None:
    """An image that is removed while it is open stays readable for who has it open, and can be pulled again."""
    reference = registry.push(image, "app:1")
    site.ask(ALICE, reference)
    with (site.store / site.images()[0]).open("rb") as held:
        assert "and its image" in site.piolet(ALICE, "image", "rm", reference).stdout
        assert held.read(4) == b"hsqs"
    assert "error" not in site.ask(ALICE, reference) and len(site.images()) == 1
