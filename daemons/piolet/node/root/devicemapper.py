"""A SquashFS image for one user by device mapper, where the kernel maps no ids of SquashFS mounts.

All that has to differ for each user is the table of ids near the end of the file (idtable.py). So a device is made of
two: a loop device of the store's file, and behind it one of a few KiB in memory with the end of the file, in which
the table is the user's. The kernel mounts it as any other. The store's file is not written to, and is not copied.

Nothing is left: the device is told to go with its mount before it is mounted (DM_DEFERRED_REMOVE), and takes the loop
devices and the memory with it. What a daemon was killed over, within these milliseconds, the next one sweeps away. No
program is run, and udev is told to keep away. Root's; it refuses a file whose table is not as piolet writes it.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import fcntl
import os
import re
import stat
import struct
from collections.abc import Iterator, Sequence

from piolet.system import idtable, linux, loop

PREFIX = "piolet-view-"
_MEMORY = "piolet-view"
_SECTOR = 512
_LOOP_MAJOR = 7
_CONTROL, _CONTROL_DEVICE = "/dev/mapper/control", (10, 236)

# <linux/dm-ioctl.h>: struct dm_ioctl, struct dm_target_spec, the head of struct dm_name_list; commands, flags.
_HEAD = struct.Struct("=3IIIIiIIIQ128s129s7x")
_TARGET = struct.Struct("=QQiI16s")
_NAME = struct.Struct("=QI")
_INTERFACE = (4, 0, 0)
_LIST, _CREATE, _REMOVE, _SUSPEND, _LOAD, _TABLE_STATUS = (0xC138FD00 | number for number in (2, 3, 4, 6, 9, 12))
_READ_ONLY, _STATUS_TABLE, _BUFFER_FULL, _INACTIVE, _DEFERRED = 1 << 0, 1 << 4, 1 << 8, 1 << 12, 1 << 17
# The upper half of event_nr, as libdevmapper uses it: no rules of device mapper, subsystem, disks and others, no nodes.
_UDEV_KEEP_AWAY = 0x2F << 16
_ROOM = 16384
_ROOM_MOST = 4 << 20
_SOME_UID, _SOME_GID = 12345, 54321

# A file system with one file, as piolet writes them. A directory t with the file `file`, its content "x\n":
#   mksquashfs t p -noappend -all-root -force-gid 1 -no-xattrs -mkfs-time 0 -all-time 0 -root-mode 755 -comp gzip \
#       -noI -noD -noF -no-exports -nopad
TINY = base64.b64decode(
    "aHNxcwIAAAAAAAAAAAACAAEAAAABABEASwICAAQAAAAgAAAAAAAAAOoAAAAAAAAA4gAAAAAAAAD//////////2IAAAAAAAAApAAA"
    "AAAAAADQAAAAAAAAAP//////////eApAgAIApAEAAAEAAAAAAAEAAAAAAAAAAAAAAAAAAAACAAAAAQDtAQAAAQAAAAAAAgAAAAAA"
    "AAACAAAAGwAAAAMAAAAYgAAAAAAAAAAAAQAAAAAAAAACAAMAZmlsZRCAYAAAAAAAAAACAAABAAAAAL4AAAAAAAAACIAAAAAAAQAA"
    "ANgAAAAAAAAA"
).ljust(idtable.BLOCK, b"\0")


class DeviceMapper:
    """Mounts views; `place` tells this daemon's devices from those of others on the same kernel (leftovers.place)."""

    def __init__(self, place: str) -> None:
        self._prefix = f"{PREFIX}{place.replace('/', '-')[:64]}-"

    def mount_view(self, image: int, owners: dict[int, int], target: str) -> None:
        """Mount the SquashFS file behind the descriptor `image` at `target`: ro, nosuid, nodev, with other owners.

        image   a file of the store, whose owner and mode were checked on this descriptor
        owners  {0: uid, 1: gid}: what stands for the file's uid 0 and gid 1

        Raises OSError: EUCLEAN, the file is not one that piolet writes; EOVERFLOW, it has one id and the user needs
        two; and whatever the kernel says. Nothing is left then.
        """
        cut, end = idtable.tail(image, idtable.read(image), owners)
        name = self._prefix + os.urandom(8).hex()
        with contextlib.ExitStack() as stack:
            control = stack.enter_context(_control())
            memory = os.memfd_create(_MEMORY, os.MFD_CLOEXEC)
            stack.callback(os.close, memory)
            os.write(memory, end)
            table = [(0, cut, stack.enter_context(_loop(image)))] if cut else []
            table.append((cut, len(end), stack.enter_context(_loop(memory))))
            number = _number(_command(control, _CREATE, name, _READ_ONLY))
            try:
                _command(control, _LOAD, name, _READ_ONLY, table)
                _command(control, _SUSPEND, name)  # without the flag that suspends, it resumes
                with _node(number, name) as path:
                    held = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                    try:
                        # Told now, it goes with its last user, whatever becomes of this process.
                        _command(control, _REMOVE, name, _DEFERRED)
                        linux.mount(path, target, "squashfs", linux.MS_RDONLY | linux.MS_NOSUID | linux.MS_NODEV)
                    finally:
                        os.close(held)
            except BaseException:
                with contextlib.suppress(OSError):  # it may be gone already
                    _command(control, _REMOVE, name, _DEFERRED)
                raise

    def sweep(self, store: str) -> list[str]:
        """Remove what a daemon of this place was killed over, if it shows files below `store`; return the names.

        What a container still uses goes when that ends. Raises OSError.
        """
        removed = []
        for entry in os.listdir("/dev"):
            if entry.startswith(f".{self._prefix}"):
                os.unlink(f"/dev/{entry}")
        with _control() as control:
            for name in _names(control):
                if not name.startswith(self._prefix):
                    continue
                try:
                    if _shows_only(control, name, os.path.realpath(store)):
                        _command(control, _REMOVE, name, _DEFERRED)
                        removed.append(name)
                except OSError as error:
                    if error.errno != errno.ENXIO:  # it has gone meanwhile, as it was told to
                        raise
        return removed

    def probe(self, target: str) -> OSError | None:
        """Try it with a tiny file system and the empty directory `target`; return what is in the way, or None."""
        try:
            with tiny_image() as image:
                self.mount_view(image, {0: _SOME_UID, 1: _SOME_GID}, target)
            try:
                status = os.stat(f"{target}/file")
            finally:
                linux.umount(target)
        except OSError as error:
            return error
        if (status.st_uid, status.st_gid) != (_SOME_UID, _SOME_GID):
            return OSError(errno.ENOTSUP, "the owners of files did not change", target)
        return None


@contextlib.contextmanager
def tiny_image() -> Iterator[int]:
    """Yield a descriptor of TINY, in memory."""
    memory = os.memfd_create(_MEMORY, os.MFD_CLOEXEC)
    try:
        os.write(memory, TINY)
        yield memory
    finally:
        os.close(memory)


@contextlib.contextmanager
def _control() -> Iterator[int]:
    """Open device mapper's control device, by a node of our own where /dev has none; opening it loads the module."""
    try:
        control = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        path = f"/dev/.{PREFIX}{os.urandom(8).hex()}"
        os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(*_CONTROL_DEVICE))
        try:
            control = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        finally:
            os.unlink(path)
    try:
        yield control
    finally:
        os.close(control)


@contextlib.contextmanager
def _loop(file: int) -> Iterator[int]:
    """Yield the number of a loop device of a file. It is let go afterwards, which means: with its last user."""
    device, _ = loop.attach(file)
    try:
        yield os.fstat(device).st_rdev
    finally:
        with contextlib.suppress(OSError):  # it goes by itself, too, when nobody has it open
            loop.let_go(device)
        os.close(device)


@contextlib.contextmanager
def _node(number: int, name: str) -> Iterator[str]:
    """Yield the path of a node of the block device `number`, root's alone. In /dev: /run may be mounted nodev."""
    path = f"/dev/.{name}"
    try:
        os.mknod(path, 0o600 | stat.S_IFBLK, number)
        yield path
    finally:
        with contextlib.suppress(OSError):  # `sweep` looks for it
            os.unlink(path)


def _command(
    control: int, command: int, name: str = "", flags: int = 0, table: Sequence[tuple[int, int, int]] = ()
) -> bytearray:
    """Give device mapper a command; return its answer.

    table  parts of the device: first byte, length in bytes, and the number of the device whose first bytes these are
    """
    body = b""
    for start, length, device in table:
        where = f"{os.major(device)}:{os.minor(device)} 0\0".encode()
        where += bytes(-len(where) % 8)
        size = _TARGET.size + len(where)
        body += _TARGET.pack(start // _SECTOR, length // _SECTOR, 0, size, b"linear") + where
    room = _ROOM
    while True:
        block = bytearray(_HEAD.size + len(body) + room)
        _HEAD.pack_into(
            block,
            0,
            *_INTERFACE,
            len(block),
            _HEAD.size,
            len(table),
            0,
            flags,
            _UDEV_KEEP_AWAY,
            0,
            0,
            name.encode(),
            b"",
        )
        block[_HEAD.size : _HEAD.size + len(body)] = body
        fcntl.ioctl(control, command, block)
        if not _flags(block) & _BUFFER_FULL:
            return block
        room *= 4
        if room > _ROOM_MOST:
            raise OSError(errno.E2BIG, "device mapper has more to say than can be meant", name)


def _flags(answer: bytearray) -> int:
    return int(_HEAD.unpack_from(answer)[7])


def _number(answer: bytearray) -> int:
    """Return the number of the device that an answer is about, which it gives in the kernel's own form."""
    number = int(_HEAD.unpack_from(answer)[10])
    return os.makedev(number >> 8 & 0xFFF, number & 0xFF | number >> 12 & 0xFFF00)


def _text(answer: bytearray, start: int) -> str:
    end = answer.find(0, start)
    return answer[start : len(answer) if end < 0 else end].decode("utf-8", "replace")


def _names(control: int) -> list[str]:
    """Return the names of all devices."""
    answer = _command(control, _LIST)
    names: list[str] = []
    at, following = _HEAD.unpack_from(answer)[4], 1
    while following and at + _NAME.size <= len(answer):
        number, following = _NAME.unpack_from(answer, at)
        if number:
            names.append(_text(answer, at + _NAME.size))
        at += following
    return names


def _shows_only(control: int, name: str, store: str) -> bool:
    """Return whether a device is made of nothing but files below `store` and our memory. One of nothing yet is, too."""
    for more in (0, _INACTIVE):
        answer = _command(control, _TABLE_STATUS, name, _STATUS_TABLE | more)
        fields = _HEAD.unpack_from(answer)
        first, at = fields[4], fields[4]
        for _ in range(fields[5]):
            _, _, _, following, kind = _TARGET.unpack_from(answer, at)
            device = _text(answer, at + _TARGET.size).partition(" ")[0]
            if kind.rstrip(b"\0") != b"linear" or not _is_ours(device, store):
                return False
            at = first + following
    return True


def _is_ours(device: str, store: str) -> bool:
    """Return whether a device "MAJOR:MINOR" is a loop device of a file below `store`, or of our memory."""
    if not re.fullmatch(rf"{_LOOP_MAJOR}:[0-9]+", device):
        return False
    try:
        with open(f"/sys/dev/block/{device}/loop/backing_file", encoding="utf-8", errors="surrogateescape") as file:
            path = file.read().rstrip("\n")
    except OSError:
        return False
    return path.startswith(f"{store}/") or path == f"/memfd:{_MEMORY} (deleted)"
