"""What pioletd makes before it starts its processes: who may use it."""

from __future__ import annotations

import dataclasses
import os
import pwd
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from piolet.events.stream import Stream, Writer
from piolet.node import places
from piolet.site.config import Config

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, as pioletd has")


def config(spool: Path, account: str) -> Config:
    base = Config()
    return dataclasses.replace(
        base, events=dataclasses.replace(base.events, spool=str(spool)),
        forward=dataclasses.replace(base.forward, account=account),
    )  # fmt: skip


def test_the_forwarder_reads_records_by_its_group(tmp_path: Path) -> None:
    """And so does nobody else; where there is no forwarder, the server alone."""
    server, forwarder = pwd.getpwnam("nobody"), pwd.getpwnam("daemon")
    for account, gid in (("no-such-account", server.pw_gid), ("daemon", forwarder.pw_gid)):
        spool = tmp_path / account
        places.spool_of(server, str(spool), config(spool, account))
        status = spool.stat()
        assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (server.pw_uid, gid, 0o750)
        stream = Stream(str(spool), None, Writer("c", "n", "0" * 32))
        os.close(stream._open())
        (part,) = spool.iterdir()
        own = gid if account == "daemon" else os.getegid()
        assert (part.stat().st_gid, part.stat().st_mode & 0o777) == (own, 0o640)


BOUNDED = """
import dataclasses, pwd, sys
from piolet.node import places
from piolet.site.config import Config
base = Config()
forward = dataclasses.replace(base.forward, account="daemon")
places.spool_of(pwd.getpwnam("nobody"), sys.argv[1], dataclasses.replace(base, forward=forward))
"""


def test_the_forwarder_reads_records_where_the_unit_bounds_what_root_may(tmp_path: Path) -> None:
    """Without CAP_FSETID the kernel takes a bit of the directory's mode away, and says nothing."""
    unit = (Path(__file__).parents[3] / "etc/systemd/pioletd.service").read_text("utf-8")
    (held,) = (line for line in unit.splitlines() if line.startswith("CapabilityBoundingSet="))
    held = ",".join(f"+{word.removeprefix('CAP_').lower()}" for word in held.partition("=")[2].split())
    bounded = ["setpriv", f"--bounding-set=-all,{held}", sys.executable, "-I", "-c", BOUNDED]
    subprocess.run([*bounded, str(tmp_path / "spool")], check=True, timeout=60)
    status = (tmp_path / "spool").stat()
    assert (status.st_gid, stat.S_IMODE(status.st_mode)) == (pwd.getpwnam("daemon").pw_gid, 0o2750)


def test_records_that_were_there_before_the_forwarder(tmp_path: Path) -> None:
    """It reads them, and nothing that the server's account may have put beside them."""
    server, forwarder = pwd.getpwnam("nobody"), pwd.getpwnam("daemon")
    spool, others = tmp_path / "spool", tmp_path / "others"
    places.spool_of(server, str(spool), config(spool, "no-such-account"))
    names = [f"node-{epoch:016x}-{1:020d}.jsonl" for epoch in range(4)]
    others.write_text("a secret of root's")
    for name in names[:2]:
        (spool / name).touch(0o640)
        os.chown(spool / name, server.pw_uid, server.pw_gid)
    os.link(spool / names[1], tmp_path / "another-name")
    (spool / names[2]).symlink_to(others)
    os.link(others, spool / names[3])
    places.spool_of(server, str(spool), config(spool, "daemon"))
    given = [name for name in names if (spool / name).stat().st_gid == forwarder.pw_gid]
    assert given == names[:1]


def test_only_root_may_send_outcomes(tmp_path: Path) -> None:
    path = tmp_path / "events.sock"
    path.write_text("what a dead daemon left")
    with places.hear(path) as hearing:
        status = path.stat()
        assert stat.S_ISSOCK(status.st_mode) and status.st_mode & 0o777 == 0o600 and status.st_uid == 0
        assert hearing.getsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED) == 1
