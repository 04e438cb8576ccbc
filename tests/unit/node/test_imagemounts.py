"""How images are mounted: what is found out, what is said of it, and what is noted."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from piolet.node.root import devicemapper, imagemounts
from piolet.node.root.devicemapper import DeviceMapper
from piolet.node.root.imagemounts import DEVICE_MAPPER, FUSE, IDMAP, Choice
from piolet.system import linux, usernamespaces


@pytest.fixture
def squashfuse(tmp_path: Path) -> str:
    path = tmp_path / "squashfuse"
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return str(path)


def refuse(monkeypatch: pytest.MonkeyPatch, *, idmap: int, mapper: int = 0, fuse: int = 0) -> None:
    """Have the ways fail with these errors; 0 is that it works."""

    def answer(number: int) -> OSError | None:
        return OSError(number, os.strerror(number)) if number else None

    monkeypatch.setattr(imagemounts, "can_set_attributes", lambda: True)
    monkeypatch.setattr(imagemounts, "probe_idmap", lambda _: answer(idmap))
    monkeypatch.setattr(DeviceMapper, "probe", lambda _, __: answer(mapper))
    monkeypatch.setattr(imagemounts, "probe_fuse", lambda _: answer(fuse))


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EPERM, errno.ENOSYS, errno.ENODEV, errno.EIO])
def test_the_first_way_that_works_is_taken(
    tmp_path: Path, squashfuse: str, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    mapper = DeviceMapper("here.0")
    refuse(monkeypatch, idmap=0)
    assert imagemounts.choose("auto", str(tmp_path), mapper, squashfuse) == Choice(IDMAP, True)
    refuse(monkeypatch, idmap=number)
    found = imagemounts.choose("auto", str(tmp_path), mapper, squashfuse)
    assert (found.way, found.fuse, [way for way, _ in found.tried]) == (DEVICE_MAPPER, True, [IDMAP])
    assert "are mounted by views by device mapper (idmapped SquashFS mounts: " in found.describe()
    refuse(monkeypatch, idmap=number, mapper=errno.ENXIO)
    found = imagemounts.choose("auto", str(tmp_path), mapper, squashfuse)
    assert (found.way, [way for way, _ in found.tried]) == (FUSE, [IDMAP, DEVICE_MAPPER])
    assert "no device mapper (modprobe dm_mod)" in found.describe()
    refuse(monkeypatch, idmap=number, mapper=errno.ENXIO, fuse=errno.ENOENT)
    found = imagemounts.choose("auto", str(tmp_path), mapper, squashfuse)
    assert (found.way, found.fuse) == ("", False)
    assert found.describe().startswith("images of the site's store cannot be mounted here: idmapped")
    assert "modprobe dm_mod" in found.hint
    assert list(tmp_path.iterdir()) == [Path(squashfuse)], "nothing is left"


@pytest.mark.parametrize("way", [IDMAP, DEVICE_MAPPER, FUSE])
def test_a_way_that_is_wanted_is_the_only_one(
    tmp_path: Path, squashfuse: str, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    errors = {IDMAP: errno.EPERM, DEVICE_MAPPER: errno.ENXIO, FUSE: errno.ENOENT}
    refuse(monkeypatch, idmap=0)
    assert imagemounts.choose(way, str(tmp_path), DeviceMapper("here.0"), squashfuse).way == way
    refuse(monkeypatch, idmap=errors[IDMAP], mapper=errors[DEVICE_MAPPER], fuse=errors[FUSE])
    found = imagemounts.choose(way, str(tmp_path), DeviceMapper("here.0"), squashfuse)
    assert found.way == "" and [tried for tried, _ in found.tried] == [way]
    assert found.hint == '[node] image_mounts = "auto" takes what works'


def test_a_kernel_too_old(tmp_path: Path, squashfuse: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagemounts, "can_set_attributes", lambda: False)
    found = imagemounts.choose("auto", str(tmp_path), DeviceMapper("here.0"), squashfuse)
    assert (
        found.way == ""
        and found.describe() == f"Linux {os.uname().release} is too old for containers: 5.12 is the oldest"
    )


def test_what_is_asked_of_the_kernel_about_its_age(monkeypatch: pytest.MonkeyPatch) -> None:
    assert imagemounts.can_set_attributes(), "the tests' own kernel"

    def no_such_call(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSYS, "no such call")

    monkeypatch.setattr(linux, "set_mount_attributes", no_such_call)
    assert not imagemounts.can_set_attributes()


def test_squashfuse_that_is_not_there(tmp_path: Path) -> None:
    error = imagemounts.probe_fuse(str(tmp_path / "none"))
    assert error is not None and "is not there" in str(error)


def test_a_squashfuse_of_fuse_2_is_none(tmp_path: Path, squashfuse: str) -> None:
    """It can be run, but serves nothing here: a node that has but this one has no way."""
    Path(squashfuse).write_bytes(b"\x7fELF\0libc.so.6\0libfuse.so.2\0")
    error = imagemounts.probe_fuse(squashfuse)
    assert error is not None and "built with FUSE 2" in str(error) and squashfuse in str(error)
    Path(squashfuse).write_bytes(b"\x7fELF\0libc.so.6\0libfuse3.so.3\0")
    error = imagemounts.probe_fuse(squashfuse)
    assert error is None or "/dev/fuse" in str(error)


def test_a_note_is_read_as_it_was_written(tmp_path: Path) -> None:
    state = str(tmp_path)
    assert imagemounts.noted(state) is None
    choice = Choice(FUSE, True, [(IDMAP, "no"), (DEVICE_MAPPER, "no")])
    imagemounts.note(choice, state)
    assert imagemounts.noted(state) == choice
    assert [path.name for path in tmp_path.iterdir()] == [imagemounts.FILE]
    assert (tmp_path / imagemounts.FILE).stat().st_mode & 0o777 == 0o644
    imagemounts.forget(state)
    imagemounts.forget(state)
    assert imagemounts.noted(state) is None


@pytest.mark.parametrize("text", ["", "[]", '{"way": 1}', '{"way": "idmap", "more": 1}', "{" * 100_000])
def test_a_note_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / imagemounts.FILE).write_text(text)
    assert imagemounts.noted(str(tmp_path)) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount")
def test_what_this_kernel_does(tmp_path: Path) -> None:
    """Tried for real, in a child: it finds a way, or says what is in the way of each."""
    found = imagemounts.choose_apart("auto", str(tmp_path / "none"))
    assert found is not None and not found.fuse
    if found.way:
        assert found.way in (IDMAP, DEVICE_MAPPER)
    else:
        assert [way for way, _ in found.tried] == [IDMAP, DEVICE_MAPPER, FUSE]


def test_the_tiny_file_system_is_one_that_is_mounted_by_all_ways(tmp_path: Path) -> None:
    with devicemapper.tiny_image() as image:
        assert os.pread(image, 4, 0) == b"hsqs" and os.fstat(image).st_size == 4096


def test_the_hint_names_the_setting_that_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host name stands for a setting: no test may change a real one, which is the whole machine's."""
    name = Path("/proc/sys/kernel/hostname").read_text().strip()
    monkeypatch.setattr(usernamespaces, "SETTINGS", (("kernel.nothing", "0", "1"), ("kernel.hostname", name, "better")))
    assert usernamespaces.hint().endswith("sysctl -w kernel.hostname=better")
    monkeypatch.setattr(usernamespaces, "SETTINGS", (("kernel.hostname", name + "x", "better"),))
    assert "used up" in usernamespaces.hint()
