"""The mounting of images on a node: only what the image service wrote, and nothing is left of what failed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import select
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from piolet.base.files import identity_of
from piolet.node.root import mountedimages
from piolet.node.root.devicemapper import DeviceMapper
from piolet.node.root.imagemounts import FUSE, IDMAP, Choice, too_old
from piolet.node.root.mountedimages import Images, WantedImage, explain
from piolet.system import linux

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/dev/loop-control").exists(), reason="images are mounted by root, with loop devices"
)
DIGEST = "sha256:" + "ab" * 32
UID, GID = 4242, 5353


class Stored:
    """A store with one image that belongs to root, and a directory to mount in."""

    def __init__(self, directory: Path) -> None:
        self.store = directory / "store"
        self.base = directory / "mounts"
        content = directory / "content"
        for path in (self.store, self.base, content):
            path.mkdir()
        (content / "marker").write_text("in the image")
        self.file = self.store / f"{DIGEST.replace(':', '-')}.sqsh"
        subprocess.run(["mksquashfs", content, self.file, "-quiet", "-no-progress"], check=True, capture_output=True)
        self.file.chmod(0o600)
        self.record(hashlib.sha256(self.file.read_bytes()).hexdigest())

    def record(self, sha256: object) -> None:
        self.file.with_suffix(".json").write_text(json.dumps({"version": 1, "sha256": sha256}))

    def images(self, verify: str, way: str = IDMAP) -> Images:
        return Images(str(self.store), 0, str(self.base), Choice(way, True), DeviceMapper("test.0"), 8, verify)

    def identity(self) -> list[int]:
        return identity_of(os.stat(self.file))

    def wanted(self, identity: list[int] | None = None, uid: int = UID) -> WantedImage:
        return WantedImage(DIGEST, identity or self.identity(), uid, GID)

    def mount(self, images: Images, identity: list[int] | None = None) -> int:
        """Mount the image as the monitor does; return the child's exit status."""
        mounting = images.start_mount(self.wanted(identity))
        assert select.select([mounting.child.pidfd], [], [], 20)[0]
        code = mounting.child.collect()
        assert code is not None
        if code == 0:
            if mounting.way != FUSE:
                assert Path(mounting.path, "marker").read_text() == "in the image"
            images.mounted(mounting, 1.0)
        else:
            images.failed(mounting)
        return code


@pytest.fixture
def stored(tmp_path: Path) -> Iterator[Stored]:
    made = Stored(tmp_path)
    yield made
    for path in made.base.iterdir():
        with contextlib.suppress(OSError):
            linux.umount(str(path))


def altered(stored: Stored) -> None:
    """Change a byte that no reader of the file system would notice."""
    data = bytearray(stored.file.read_bytes())
    data[-1] ^= 1
    stored.file.write_bytes(data)


@pytest.mark.parametrize("verify", ["first", "always", "never"])
def test_a_good_image_is_mounted(stored: Stored, verify: str) -> None:
    images = stored.images(verify)
    assert stored.mount(images) == 0
    assert images.lookup(stored.wanted(), 2.0) is not None
    images.expire(3.0)
    assert not list(stored.base.iterdir())


@pytest.mark.parametrize("verify", ["first", "always"])
def test_an_altered_image_is_not_mounted(stored: Stored, verify: str) -> None:
    altered(stored)
    assert stored.mount(stored.images(verify)) == errno.EBADMSG
    assert not list(stored.base.iterdir())
    assert explain(errno.EBADMSG)[0] == "its file is not what the image service has written"


def test_a_site_may_go_without_the_check(stored: Stored) -> None:
    altered(stored)
    assert stored.mount(stored.images("never")) == 0


def test_an_image_is_checked_at_its_first_mount_and_when_its_file_is_another(stored: Stored) -> None:
    images = stored.images("first")
    assert stored.mount(images) == 0
    stored.record("0" * 64)  # shows whether it is looked at
    images.expire(3.0)
    assert stored.mount(images) == 0
    images.expire(3.0)
    os.utime(stored.file, ns=(1, 1))
    assert stored.mount(images) == errno.EBADMSG
    always = stored.images("always")
    stored.record(hashlib.sha256(stored.file.read_bytes()).hexdigest())
    assert stored.mount(always) == 0
    stored.record("0" * 64)
    always.expire(3.0)
    assert stored.mount(always) == errno.EBADMSG


@pytest.mark.parametrize("record", [None, 5, ["x"]])
def test_an_image_of_an_older_store_has_no_record(stored: Stored, record: object) -> None:
    stored.record(record)
    assert stored.mount(stored.images("first")) == 0


def test_a_file_that_others_may_write_is_not_mounted(stored: Stored) -> None:
    stored.file.chmod(0o620)
    assert stored.mount(stored.images("first")) == errno.EPERM
    stored.file.chmod(0o600)
    os.chown(stored.file, 1, 1)
    assert stored.mount(stored.images("first")) == errno.EPERM


def test_a_file_that_was_replaced_is_not_mounted(stored: Stored) -> None:
    identity = stored.identity()
    copy = stored.store / "copy"
    copy.write_bytes(stored.file.read_bytes())
    copy.rename(stored.file)
    assert stored.mount(stored.images("first"), identity) == errno.ESTALE


def test_a_file_that_is_replaced_while_it_is_checked_is_not_called_damaged(
    stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its image was converted again meanwhile, and the record that is found is the new file's."""

    def replaced(path: str) -> str:
        copy = stored.store / "copy"
        copy.write_bytes(stored.file.read_bytes() + b"another file")
        copy.rename(stored.file)
        return hashlib.sha256(stored.file.read_bytes()).hexdigest()

    monkeypatch.setattr(mountedimages, "_recorded", replaced)  # the child that mounts does it
    assert stored.mount(stored.images("first")) == errno.ESTALE


def test_a_link_in_the_place_of_the_file_is_not_followed(stored: Stored) -> None:
    identity = stored.identity()
    stored.file.rename(stored.store / "elsewhere")
    stored.file.symlink_to("elsewhere")
    assert stored.mount(stored.images("first"), identity) == errno.ELOOP


def test_an_image_that_squashfuse_serves_is_a_file_of_the_users_own(stored: Stored) -> None:
    """Which they can open by the path of the descriptor, as squashfuse does, read-only, and nobody else can."""
    images = stored.images("first", FUSE)
    assert stored.mount(images) == 0
    assert not list(stored.base.iterdir()), "no mount is needed any more"
    image = images.lookup(stored.wanted(), 2.0)
    assert image is not None and images.lookup(stored.wanted(uid=UID + 1), 2.0) is None
    view = images.view(image, stored.wanted())
    try:
        assert view.is_file
        status = os.fstat(view.descriptor)
        assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (UID, GID, 0o400)
        path, digest = f"/proc/self/fd/{view.descriptor}", hashlib.sha256(stored.file.read_bytes()).hexdigest()
        script = f"sha256sum <{path} | grep -q {digest} && ! (: >>{path}) 2>/dev/null && ! chmod 600 {path}"
        for uid, good in ((UID, True), (UID + 1, False)):
            become = ["setpriv", f"--reuid={uid}", f"--regid={GID}", "--clear-groups"]
            done = subprocess.run(
                [*become, "sh", "-c", script], pass_fds=[view.descriptor], capture_output=True, check=False
            )
            assert (done.returncode == 0) is good, (uid, done)
    finally:
        os.close(view.descriptor)
    assert (stored.file.stat().st_uid, stored.file.stat().st_mode & 0o777) == (0, 0o600)
    before = len(os.listdir("/proc/self/fd"))
    images.expire(3.0)
    assert len(os.listdir("/proc/self/fd")) == before - 1


def test_an_altered_image_is_not_served(stored: Stored) -> None:
    altered(stored)
    assert stored.mount(stored.images("first", FUSE)) == errno.EBADMSG
    assert not list(stored.base.iterdir())


def test_where_no_way_is_left(stored: Stored) -> None:
    choice = Choice("", tried=[(IDMAP, "no")], hint="do this")
    images = Images(str(stored.store), 0, str(stored.base), choice, DeviceMapper("test.0"), 8)
    assert images.refusal(of_the_store=False) is None
    assert images.refusal(of_the_store=True) == (choice.describe(), "do this")
    old = Images(str(stored.store), 0, str(stored.base), too_old("5.10"), DeviceMapper("test.0"), 8)
    assert old.refusal(of_the_store=False) == (
        "Linux 5.10 is too old for containers: 5.12 is the oldest",
        "boot a newer kernel on the nodes",
    )
