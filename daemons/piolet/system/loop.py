"""Mounts a SquashFS image by a loop device, read-only, that vanishes with the mount."""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from piolet.system import linux

_LOOP_CTL_GET_FREE, _LOOP_CONFIGURE, _LOOP_CLR_FD = 0x4C82, 0x4C0A, 0x4C01
_LO_READ_ONLY, _LO_AUTOCLEAR = 1, 4
_LOOP_MAJOR = 7
_TRIES = 64


def mount_image(image: int, target: str) -> None:
    """Mount the SquashFS file behind the descriptor `image` at `target`: ro, nosuid, nodev.

    Raises OSError: no loop device to be had, or not a SquashFS file.
    """
    device, path = attach(image)
    try:
        linux.mount(path, target, "squashfs", linux.MS_RDONLY | linux.MS_NOSUID | linux.MS_NODEV)
    except OSError:
        let_go(device)
        raise
    finally:
        os.close(device)


def let_go(device: int) -> None:
    """Let a loop device go that nothing was mounted from: autoclear acts when a mount goes."""
    fcntl.ioctl(device, _LOOP_CLR_FD)


def attach(image: int) -> tuple[int, str]:
    """Return a descriptor and the path of a loop device of the file `image`: read-only, let go by its last user."""
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_TRIES):
            number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
            path = f"/dev/loop{number}"
            device = _open_device(path, number)
            # struct loop_config: fd, block_size, struct loop_info64 (its lo_flags at offset 52), 8 reserved words.
            info = bytearray(232)
            struct.pack_into("=I", info, 52, _LO_READ_ONLY | _LO_AUTOCLEAR)
            block = struct.pack("=II", image, 0) + bytes(info) + bytes(64)
            try:
                fcntl.ioctl(device, _LOOP_CONFIGURE, block)
            except OSError as error:
                os.close(device)
                if error.errno == errno.EBUSY:
                    continue  # somebody else was faster
                raise
            return device, path
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, "every free loop device was taken by others", "/dev/loop-control")


def _open_device(path: str, number: int) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        # A private /dev without udev: the kernel has the device, nobody made the node.
        os.mknod(path, 0o600 | 0o060000, os.makedev(_LOOP_MAJOR, number))
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
