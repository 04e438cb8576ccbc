"""What pioletd makes before it starts its processes: who may use it."""

from __future__ import annotations

import dataclasses
import os
import pwd
import socket
import stat
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


def test_only_root_may_send_outcomes(tmp_path: Path) -> None:
    path = tmp_path / "events.sock"
    path.write_text("what a dead daemon left")
    with places.hear(path) as hearing:
        status = path.stat()
        assert stat.S_ISSOCK(status.st_mode) and status.st_mode & 0o777 == 0o600 and status.st_uid == 0
        assert hearing.getsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED) == 1
