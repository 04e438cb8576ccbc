"""Whom the user of a group's store believes, and which directories are refused."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from pathlib import Path

import pytest
from piolet.base.errors import ImageError
from piolet.images.reference import parse
from piolet.images.shared import VARIABLE, Group, group_of
from piolet.images.store import Access, Store

DIGEST = "sha256:" + "a" * 64
OWN = grp.getgrgid(os.getegid())


def refused(root: Path) -> str:
    with pytest.raises(ImageError) as caught:
        group_of(str(root))
    return f"{caught.value.message}; {caught.value.hint}"


def test_no_group_is_named_and_the_store_is_one_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert group_of(str(tmp_path / "store")) is None
    assert not (tmp_path / "store").exists()


def test_it_is_made_for_the_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, OWN.gr_name)
    for _ in range(2):
        group = group_of(str(tmp_path / "store"))
        assert group == Group(OWN.gr_name, OWN.gr_gid)
    assert stat.S_IMODE((tmp_path / "store").stat().st_mode) == 0o2770
    assert "No such file" in refused(tmp_path / "gone/store")


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "no-such-group")
    assert "not known on this machine" in refused(tmp_path / "store")
    other = next(entry for entry in grp.getgrall() if entry.gr_gid not in (os.getegid(), *os.getgroups()))
    monkeypatch.setenv(VARIABLE, other.gr_name)
    assert f"you are not in the group {other.gr_name}" in refused(tmp_path / "store")
    assert not (tmp_path / "store").exists()
    monkeypatch.setenv(VARIABLE, OWN.gr_name)
    store = tmp_path / "store"
    store.mkdir()
    for mode, why in ((0o2777, "may be written by everybody"), (0o0770, "mode 0770"), (0o2750, "mode 2750")):
        store.chmod(mode)
        said = refused(store)
        assert why in said
        assert f"install -d -m 2770 -g {OWN.gr_name} {store}" in said
    store.chmod(0o2770)
    if os.geteuid() == 0:
        os.chown(store, -1, other.gr_gid)
        store.chmod(0o2770)
        assert f"is of the group {other.gr_gid}" in refused(store)
        os.chown(store, 54321, OWN.gr_gid)
        store.chmod(0o2770)
        assert "belongs to uid 54321" in refused(store)


def test_members_by_the_user_database(monkeypatch: pytest.MonkeyPatch) -> None:
    def entry(uid: int) -> pwd.struct_passwd:
        if uid == 3:
            raise KeyError(uid)
        return pwd.struct_passwd((f"user{uid}", "x", uid, 70 + uid, "", "/", "/bin/sh"))

    monkeypatch.setattr(pwd, "getpwuid", entry)
    monkeypatch.setattr(os, "getgrouplist", lambda name, gid: [gid, 90] if name == "user2" else [gid])
    group = Group("team", 90)
    assert [group.trusts(uid) for uid in (1, 2, 3)] == [False, True, False]
    assert Group("first", 71).trusts(1), "a first group counts"
    assert group.trusts(os.geteuid())


@pytest.mark.parametrize("what", ["access", "reference", "image", "link", "pipe"])
def test_what_is_not_a_member_s_file_is_not_there(tmp_path: Path, what: str) -> None:
    """Nor is a link or a pipe, which would hold up who reads it."""
    group = Group(OWN.gr_name, OWN.gr_gid, {os.geteuid(): True, 54321: False})
    store = Store(str(tmp_path / "store"), "me", group)
    store.prepare()
    (tmp_path / "image").write_bytes(b"hsqs")
    reference = parse("a.example/b:1")
    store.publish(DIGEST, str(tmp_path / "image"), {"config": {}}, Access(True, (), 0))
    store.file_reference(reference, DIGEST, None)
    assert store.known(reference, os.geteuid()) is not None
    names = {"access": store.image_path(DIGEST)[:-4] + "access", "reference": store.index_path(reference, None)}
    path = names.get(what, store.image_path(DIGEST))
    if what in ("link", "pipe"):
        os.unlink(path)
        os.symlink("/etc/passwd", path) if what == "link" else os.mkfifo(path)
    elif os.geteuid() == 0:
        os.chown(path, 54321, -1)
    else:
        pytest.skip("needs root, to give a file away")
    assert store.known(reference, os.geteuid()) is None
    assert store.known(parse(f"a.example/b@{DIGEST}"), os.geteuid()) is None or what == "reference"


def test_modes_are_the_group_s(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"), "me", Group(OWN.gr_name, OWN.gr_gid))
    store.prepare()
    store.grant(DIGEST, Access(True, (), 0))
    assert stat.S_IMODE(Path(store.image_path(DIGEST)[:-4] + "access").stat().st_mode) == 0o660
    assert stat.S_IMODE((tmp_path / "store/refs/public").stat().st_mode) == 0o2770
