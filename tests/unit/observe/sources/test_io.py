"""Sources of file systems, from recorded trees: Lustre, NFS, local disks."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from piolet.api import Place, Unavailable
from piolet.observe.sources.disks import Disks
from piolet.observe.sources.lustre import Lustre
from piolet.observe.sources.nfs import Nfs

from .trees import opened, plant, told

MOUNTS = (
    "21 1 8:2 / / rw - ext4 /dev/sda2 rw\n"
    "40 21 0:43 / /scratch\\040one rw - lustre 10.0.0.1@o2ib:/scratch rw\n"
    "41 21 8:17 / /tmp rw - xfs /dev/sdb1 rw\n"
    "42 21 8:17 /a /var/tmp rw - xfs /dev/sdb1 rw\n"
    "43 21 7:0 / /image ro - squashfs /dev/loop0 ro\n"
)
LLITE = "/sys/kernel/debug/lustre/llite/scratch-ffff9c7f8b5e8000/stats"


def lustre(read: int, calls: int, opens: int, spent: int = 5000) -> str:
    return (
        "snapshot_time             1754300000.123456789 secs.nsecs\n"
        f"read_bytes                {calls} samples [bytes] 4096 1048576 {read} 99999999\n"
        "write_bytes               2 samples [bytes] 4096 4096 8192 33554432\n"
        f"read                      {calls} samples [usec] 2 900 {spent} 99\n"
        f"open                      {opens} samples [usec] 10 500 3000 99\n"
        f"getattr                   {opens} samples [usecs] 10 500 3000 99\n"
        f"inode_permission          {1000 * opens} samples [usecs] 0 5 {900 * opens} 99\n"
    )


def test_lustre_counts_by_mount(tmp_path: Path) -> None:
    plant(tmp_path, {"/proc/self/mountinfo": MOUNTS, LLITE: lustre(1_000_000, 10, 5)})
    source = opened(Lustre, tmp_path)
    (row,) = told(source, tmp_path, {LLITE: lustre(11_000_000, 20, 25, 1_505_000)})
    assert row.subject == "/scratch one"
    assert row.values == {
        "kind": "lustre", "scope": "node", "read": 1e6, "write": 0.0, "read_operations": 1.0, "write_operations": 0.0,
        "metadata_operations": 2004.0, "wait": pytest.approx(0.03),
    }  # fmt: skip


def test_an_old_lustre_counts_operations_as_reqs(tmp_path: Path) -> None:
    """Before 2.12: no times, "regs" for want of a "q", and files in /proc."""
    text = "snapshot_time 1.5 secs.usecs\nread_bytes {0} samples [bytes] 1 2 {1}\nopen {0} samples [regs]\n"
    file = "/proc/fs/lustre/llite/scratch-ffff9c7f8b5e8000/stats"
    plant(tmp_path, {"/proc/self/mountinfo": MOUNTS, file: text.format(1, 100)})
    (row,) = told(opened(Lustre, tmp_path), tmp_path, {file: text.format(11, 1100)})
    assert (row.values["read"], row.values["metadata_operations"]) == (100.0, 1.0)
    assert "wait" not in row.values


def test_counters_that_begin_anew_are_missing_once(tmp_path: Path) -> None:
    plant(tmp_path, {"/proc/self/mountinfo": MOUNTS, LLITE: lustre(5_000_000, 10, 5)})
    source = opened(Lustre, tmp_path)
    rows = told(source, tmp_path, {LLITE: lustre(1000, 10, 5)})
    assert "read" not in rows[0].values
    assert source.blanks == {("/scratch one", "its counter began anew"): 1}


@pytest.mark.parametrize(
    ("mounted", "reason"),
    [(MOUNTS, "its statistics are not there"), ("21 1 8:2 / / rw - ext4 /dev/sda2 rw\n", "no Lustre is mounted")],
)
def test_without_lustre_it_says_why(tmp_path: Path, mounted: str, reason: str) -> None:
    plant(tmp_path, {"/proc/self/mountinfo": mounted})
    with pytest.raises(Unavailable, match=reason):
        opened(Lustre, tmp_path)


def nfs(read: int, calls: int, milliseconds: int, where: str = "/home") -> str:
    return (
        "device sysfs mounted on /sys with fstype sysfs\n"
        f"device nfs01:/home mounted on {where} with fstype nfs4 statvers=1.1\n"
        "\topts:\trw,vers=4.2\n"
        f"\tbytes:\t111 222 0 0 {read} 5000 27 2\n"
        "\tRPC iostats version: 1.1  p/v: 100003/4 (nfs)\n"
        "\txprt:\ttcp 0 0 1 0 0 10 10 0 10 0 2 0 0\n"
        "\tper-op statistics\n"
        "\t        NULL: 0 0 0 0 0 0 0 0 0\n"
        f"\t        READ: {calls} {calls} 0 1000 {read} 5 20 {milliseconds} 0\n"
        "\t       WRITE: 3 3 0 5000 100 0 6 9 0\n"
        f"\t     GETATTR: {calls} {calls} 0 1000 1000 0 3 4 0\n"
    )


def test_nfs_tells_what_came_from_the_server(tmp_path: Path) -> None:
    file = "/proc/self/mountstats"
    plant(tmp_path, {file: nfs(4_000_000, 10, 100)})
    (row,) = told(opened(Nfs, tmp_path), tmp_path, {file: nfs(24_000_000, 30, 2100)})
    assert row.subject == "/home"
    assert row.values == {
        "kind": "nfs", "scope": "node", "read": 2e6, "write": 0.0, "read_operations": 2.0, "write_operations": 0.0,
        "metadata_operations": 2.0, "wait": 0.05,
    }  # fmt: skip


def test_two_mounts_of_one_export_are_told_once(tmp_path: Path) -> None:
    plant(tmp_path, {"/proc/self/mountstats": nfs(1, 1, 1) + nfs(1, 1, 1, "/users")})
    source = opened(Nfs, tmp_path)
    rows = told(source, tmp_path, {"/proc/self/mountstats": nfs(11, 1, 1) + nfs(11, 1, 1, "/users")})
    assert [row.subject for row in rows] == ["/home"]


def test_without_nfs_it_says_so(tmp_path: Path) -> None:
    plant(tmp_path, {"/proc/self/mountstats": "device sysfs mounted on /sys with fstype sysfs\n"})
    with pytest.raises(Unavailable, match="no NFS is mounted"):
        opened(Nfs, tmp_path)


def disks(reads: int, sectors: int, milliseconds: int) -> str:
    return (
        "   8       0 sda 9 9 9 9 9 9 9 9 0 9 9\n"
        "   8       2 sda2 1 0 8 1 1 0 8 1 0 1 1 0 0 0 0 0 0\n"
        f"   8      17 sdb1 {reads} 0 {sectors} {milliseconds} 4 0 64 8 0 5 9 0 0 0 0 0 0\n"
        "   7       0 loop0 5 0 5 5 0 0 0 0 0 5 5\n"
    )


def test_a_local_file_system_is_told_once_and_images_are_not(tmp_path: Path) -> None:
    plant(tmp_path, {"/proc/self/mountinfo": MOUNTS, "/proc/diskstats": disks(10, 1000, 10)})
    rows = told(opened(Disks, tmp_path), tmp_path, {"/proc/diskstats": disks(60, 21000, 110)})
    assert {row.subject for row in rows} == {"/", "/tmp"}
    (row,) = [row for row in rows if row.subject == "/tmp"]
    assert row.values == {
        "kind": "xfs", "scope": "node", "read": 1024000.0, "write": 0.0, "read_operations": 5.0,
        "write_operations": 0.0, "wait": 0.002,
    }  # fmt: skip


def test_what_only_root_may_open_is_read_by_its_descriptor(tmp_path: Path) -> None:
    """A file that the kernel makes anew is read from its start each time; a directory is looked through."""
    plant(tmp_path, {"/a/held": "one", "/d/x/stats": "two"})
    file, directory = os.open(tmp_path / "a/held", os.O_RDONLY), os.open(tmp_path / "d", os.O_RDONLY)
    place = Place(root="/nowhere", held={"/a/held": file, "/d": directory})
    assert [place.held_text("/a/held") for _ in range(2)] == ["one", "one"]
    assert place.held_names("/d") == ["x"]
    assert place.held_text("/d", "x/stats") == "two"
    os.close(file)
    os.close(directory)


def test_a_file_that_comes_in_pieces_is_read_whole(tmp_path: Path) -> None:
    """The kernel gives a long mountinfo some lines at a time."""
    os.mkfifo(tmp_path / "pieces")

    def write() -> None:
        with (tmp_path / "pieces").open("w") as out:
            for _ in range(3):
                out.write("x" * 5000)
                out.flush()
                time.sleep(0.05)

    writer = threading.Thread(target=write)
    writer.start()
    assert Place(root=str(tmp_path)).text("/pieces") == "x" * 15000
    writer.join()
