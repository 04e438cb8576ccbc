"""Views by device mapper on a real kernel: the owners are the user's, and nothing is left, whatever goes wrong."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from piolet.node.root import devicemapper
from piolet.node.root.devicemapper import DeviceMapper
from piolet.system import linux, loop

from tests.kernels.support import Store, devices, wait_gone

UID, GID = 4242, 5353


@pytest.fixture
def mapper(tmp_path: Path) -> DeviceMapper:
    """A device mapper with a place of its own; skips where the kernel has none."""
    made = DeviceMapper(f"test{os.getpid()}.{tmp_path.stat().st_ino:x}")
    probe = tmp_path / "probe"
    probe.mkdir()
    why = made.probe(str(probe))
    if why is not None and why.errno in (errno.ENODEV, errno.ENXIO):
        pytest.skip("this kernel has no device mapper")
    assert why is None
    return made


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """What the test made is gone at its end: devices go when their last user has, a little later."""
    before = devices()
    nodes = set(os.listdir("/dev"))
    yield
    wait_gone(before, "the end of all devices")
    assert {name for name in set(os.listdir("/dev")) - nodes if name.startswith(".piolet")} == set()


@pytest.mark.usefixtures("nothing_left")
def test_every_file_is_the_users(mapper: DeviceMapper, store: Store, target: Path) -> None:
    before = store.two_ids.read_bytes()
    with opened(store.two_ids) as image:
        mapper.mount_view(image, {0: UID, 1: GID}, str(target))
    found = [target, *target.rglob("*")]
    assert {(path.lstat().st_uid, path.lstat().st_gid) for path in found} == {(UID, GID)}
    assert {str(path.relative_to(target)) for path in found[1:]} == {"etc", "etc/kept", "opt", "opt/secret", "big"}
    assert (target / "big").read_bytes() == (store.directory / "tree/big").read_bytes()
    assert stat.S_IMODE((target / "opt/secret").stat().st_mode) == 0o600
    flags = os.statvfs(target).f_flag
    assert flags & os.ST_RDONLY and flags & os.ST_NOSUID and flags & os.ST_NODEV
    with pytest.raises(OSError, match="Read-only"):
        (target / "new").touch()
    assert store.two_ids.read_bytes() == before
    linux.umount(str(target))


@pytest.mark.usefixtures("nothing_left")
def test_users_of_one_image_at_a_time(mapper: DeviceMapper, store: Store, tmp_path: Path) -> None:
    places = [tmp_path / f"view{number}" for number in range(4)]
    with opened(store.two_ids) as image:
        for number, place in enumerate(places):
            place.mkdir()
            mapper.mount_view(image, {0: UID + number, 1: GID + number}, str(place))
    try:
        for number, place in enumerate(places):
            status = (place / "opt/secret").stat()
            assert (status.st_uid, status.st_gid) == (UID + number, GID + number)
    finally:
        for place in places:
            linux.umount(str(place))


@pytest.mark.usefixtures("nothing_left")
def test_one_id_is_for_users_with_one_number(mapper: DeviceMapper, store: Store, target: Path) -> None:
    with opened(store.one_id) as image:
        with pytest.raises(OSError, match="one id") as caught:
            mapper.mount_view(image, {0: UID, 1: GID}, str(target))
        assert caught.value.errno == errno.EOVERFLOW
        mapper.mount_view(image, {0: UID, 1: UID}, str(target))
    assert {(path.lstat().st_uid, path.lstat().st_gid) for path in target.rglob("*")} == {(UID, UID)}
    linux.umount(str(target))


@pytest.mark.usefixtures("nothing_left")
def test_a_file_that_the_kernel_refuses(mapper: DeviceMapper, store: Store, target: Path) -> None:
    with opened(store.damaged) as image, pytest.raises(OSError, match=str(target)):
        mapper.mount_view(image, {0: UID, 1: GID}, str(target))
    assert not target.is_mount()


STEPS: list[tuple[Any, str]] = [
    (loop, "attach"),
    (loop, "let_go"),
    (devicemapper, "_command"),
    (linux, "mount"),
    (os, "mknod"),
    (os, "unlink"),
    (os, "memfd_create"),
    (os, "open"),
    (os, "write"),
]


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("after", [False, True], ids=["not done", "done, and yet"])
@pytest.mark.parametrize(("where", "name"), STEPS, ids=[name for _, name in STEPS])
def test_nothing_is_left_where_a_step_fails(
    mapper: DeviceMapper,
    store: Store,
    target: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: Any,
    name: str,
    after: bool,
) -> None:
    """Each call of each function that acts fails once: before it acts, or behind it."""
    real: Callable[..., Any] = getattr(where, name)
    calls = 0
    failing = 1
    failures = 0

    def fails(*arguments: Any, **more: Any) -> Any:
        nonlocal calls, failures
        calls += 1
        if calls != failing:
            return real(*arguments, **more)
        failures += 1
        if after and name not in ("attach", "open", "memfd_create"):  # what has these returns is theirs to close
            real(*arguments, **more)
        raise OSError(errno.EIO, "as the test wants it", name)

    with opened(store.two_ids) as image:
        while True:
            calls = 0
            with monkeypatch.context() as patch:
                patch.setattr(where, name, fails)
                try:
                    mapper.mount_view(image, {0: UID, 1: GID}, str(target))
                except OSError as error:
                    assert error.errno == errno.EIO
                    assert not target.is_mount() or (name, after) == ("mount", True)
            if name == "unlink":
                mapper.sweep(str(store.directory))
            while target.is_mount():
                linux.umount(str(target))
            if calls < failing:
                break
            failing += 1
    assert failures >= 1 and failures == failing - 1


def test_a_mounter_that_is_killed_leaves_nothing_that_a_sweep_does_not_take(
    mapper: DeviceMapper, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at each command to device mapper, and just behind each."""
    before = devices()
    for moment in range(1, 9):
        target = tmp_path / f"t{moment}"
        target.mkdir()
        child = os.fork()
        if child == 0:
            _mount_until_killed(mapper, store, target, moment)
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status) == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        DeviceMapper("another.1").sweep(str(store.directory))
        elsewhere = mapper.sweep(str(tmp_path / "other-store"))
        held = {line for line in devices() - before if "piolet-view-" in line}
        # What has a table points at another store: it is not ours to take.
        assert elsewhere == [] or not held
        mapper.sweep(str(store.directory))
        wait_gone(before, f"the end of what was killed at moment {moment}")
    assert moment > 6, "it was done before it could be killed everywhere"


def _mount_until_killed(mapper: DeviceMapper, store: Store, target: Path, moment: int) -> None:
    count = 0
    real = devicemapper._command

    def killed(*arguments: Any, **more: Any) -> Any:
        nonlocal count
        count += 1
        if count == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        answer = real(*arguments, **more)
        count += 1
        if count == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    status = 1
    try:
        linux.unshare(linux.CLONE_NEWNS)
        linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
        devicemapper._command = killed
        with opened(store.two_ids) as image:
            mapper.mount_view(image, {0: UID, 1: GID}, str(target))
        status = 0
    finally:
        os._exit(status)


@pytest.mark.usefixtures("nothing_left")
def test_a_view_in_use_outlives_a_sweep(mapper: DeviceMapper, store: Store, target: Path) -> None:
    with opened(store.two_ids) as image:
        mapper.mount_view(image, {0: UID, 1: GID}, str(target))
    mapper.sweep(str(store.directory))
    assert (target / "etc/kept").read_text() == "kept\n"
    linux.umount(str(target))


@pytest.mark.usefixtures("nothing_left")
def test_devices_of_others_stay(mapper: DeviceMapper, store: Store, tmp_path: Path) -> None:
    """A device of our name that shows somebody else's file is not ours."""
    other = tmp_path / "other.sqsh"
    other.write_bytes(store.two_ids.read_bytes())
    name = f"{mapper._prefix}0123456789abcdef"
    with opened(other) as image, devicemapper._control() as control, devicemapper._loop(image) as number:
        devicemapper._command(control, devicemapper._CREATE, name, devicemapper._READ_ONLY)
        try:
            table = [(0, 4096, number)]
            devicemapper._command(control, devicemapper._LOAD, name, devicemapper._READ_ONLY, table)
            assert mapper.sweep(str(store.directory)) == []
            assert name in devicemapper._names(control)
            assert mapper.sweep(str(tmp_path)) == [name]
            assert name not in devicemapper._names(control)
        finally:
            with contextlib.suppress(OSError):
                devicemapper._command(control, devicemapper._REMOVE, name)


def test_many_devices_are_listed(mapper: DeviceMapper) -> None:
    """More than the first answer has room for."""
    names = [f"{mapper._prefix}{number:03}{'n' * 90}" for number in range(150)]
    with devicemapper._control() as control:
        try:
            for name in names:
                devicemapper._command(control, devicemapper._CREATE, name, devicemapper._READ_ONLY)
            assert set(names) <= set(devicemapper._names(control))
        finally:
            for name in names:
                with contextlib.suppress(OSError):
                    devicemapper._command(control, devicemapper._REMOVE, name)
        assert not set(names) & set(devicemapper._names(control))


@pytest.mark.usefixtures("nothing_left")
def test_the_node_of_a_device_is_roots_alone(
    mapper: DeviceMapper, store: Store, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[os.stat_result] = []
    real = linux.mount

    def look(source: str, *arguments: Any) -> None:
        seen.append(os.lstat(source))
        real(source, *arguments)

    monkeypatch.setattr(linux, "mount", look)
    old = os.umask(0)
    try:
        with opened(store.two_ids) as image:
            mapper.mount_view(image, {0: UID, 1: GID}, str(target))
    finally:
        os.umask(old)
    assert len(seen) == 1 and stat.S_ISBLK(seen[0].st_mode)
    assert stat.S_IMODE(seen[0].st_mode) == 0o600 and seen[0].st_uid == 0
    linux.umount(str(target))


def test_the_view_is_read_by_the_user_and_nobody_else(mapper: DeviceMapper, store: Store, target: Path) -> None:
    with opened(store.two_ids) as image:
        mapper.mount_view(image, {0: UID, 1: GID}, str(target))
    target.parent.chmod(0o755)
    for parent in target.parents:
        if parent.stat().st_uid == os.geteuid() and parent.name.startswith("pytest"):
            parent.chmod(0o755)
    command = ["cat", str(target / "opt/secret")]
    for uid, good in ((UID, True), (UID + 1, False)):
        done = subprocess.run(["setpriv", f"--reuid={uid}", f"--regid={GID}", "--clear-groups", *command], check=False,
                              capture_output=True)  # fmt: skip
        assert (done.returncode == 0) is good, done
    linux.umount(str(target))
