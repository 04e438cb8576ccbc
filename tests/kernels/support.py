"""Images as the service writes them, and a look at what the kernel still holds of them."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.support.waiting import wait_until

MKSQUASHFS = ("-noappend", "-no-xattrs", "-noI", "-comp", "gzip", "-quiet", "-no-progress")


@dataclass(frozen=True)
class Store:
    """Images in a directory."""

    directory: Path
    two_ids: Path
    one_id: Path
    damaged: Path


def make_images(room: Path) -> Store:
    """Write images with a tree of a few directories and 600 kB."""
    tree = room / "tree"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc" / "kept").write_text("kept\n")
    (tree / "opt").mkdir()
    (tree / "opt" / "secret").write_text("of root in the image\n")
    (tree / "opt" / "secret").chmod(0o600)
    (tree / "big").write_bytes(os.urandom(600_000))
    store = Store(room, room / "two.sqsh", room / "one.sqsh", room / "damaged.sqsh")
    for path, ids in ((store.two_ids, ["-all-root", "-force-gid", "1"]), (store.one_id, ["-all-root"])):
        command = ["mksquashfs", str(tree), str(path), *MKSQUASHFS, *ids]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    data = bytearray(store.two_ids.read_bytes())
    # The ids are in their place, but what the kernel reads first, the table of inodes, is not one.
    data[64:72] = (2**40).to_bytes(8, "little")
    store.damaged.write_bytes(data)
    return store


def devices() -> set[str]:
    """Return the loop devices in use, with their files, and the devices of device mapper, with their names."""
    found = set()
    for block in Path("/sys/block").iterdir():
        for name in ("loop/backing_file", "dm/name"):
            try:
                found.add(f"{block.name} {(block / name).read_text().strip()}")
            except OSError:
                continue
    return found


def wait_gone(before: set[str], what: str) -> None:
    """Wait until no device is there that was not there `before`; AssertionError says which ones are."""
    try:
        wait_until(lambda: devices() <= before, what=what)
    except AssertionError as error:
        raise AssertionError(f"{error}: {devices() - before}") from None
