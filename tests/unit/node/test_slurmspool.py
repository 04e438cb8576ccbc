"""Where slurmd's spool directory is, by the kernel's list of sockets."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from piolet.node.server.slurmspool import SlurmSpool

LINE = "0000000000000000: 00000002 00000000 00010000 0001 01 {inode}{path}\n"


def listing(tmp_path: Path, *paths: str) -> SlurmSpool:
    file = tmp_path / "unix"
    lines = [LINE.format(inode=7 + at, path=f" {path}" if path else "") for at, path in enumerate(paths)]
    file.write_text("Num       RefCount Protocol Flags    Type St Inode Path\n" + "".join(lines))
    return SlurmSpool(str(file))


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="a directory of root is needed")


@needs_root
@pytest.mark.parametrize("name", ["n1_7.0", "n1_7.4294967290", "n1_7.0.1", "n1_SABC123.0"])
def test_the_directory_of_a_slurmstepd_s_socket(tmp_path: Path, name: str) -> None:
    where = "/var/lib/dpkg"  # as any that is root's
    found = listing(tmp_path, "", "@abstract", f"/elsewhere/{name}x", "/run/x.sock", f"{where}/{name}")
    assert found.directory("n1") == where
    assert found.directory("n") is None


@needs_root
def test_what_is_known_is_not_looked_for_again(tmp_path: Path) -> None:
    found = listing(tmp_path, "/var/lib/dpkg/n1_7.0")
    assert found.directory("n1") == "/var/lib/dpkg"
    (tmp_path / "unix").unlink()
    assert found.directory("n1") == "/var/lib/dpkg"
    assert found.directory("n2") is None


def test_a_directory_that_others_can_write_to_is_not_believed(tmp_path: Path) -> None:
    own = tmp_path / "spool"
    own.mkdir()
    own.chmod(0o777)
    (tmp_path / "link").symlink_to("/var/lib/dpkg")
    assert listing(tmp_path, f"{own}/n1_7.0", "/tmp/n1_7.0", f"{tmp_path}/link/n1_7.0").directory("n1") is None


def test_the_kernel_s_own_list(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{tmp_path}/piolettest_7.0")
        found = SlurmSpool()
        assert found._candidates("piolettest") == [str(tmp_path)]
