"""What the service manager is told."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from piolet.system import notify


@pytest.mark.parametrize("abstract", [False, True])
def test_ready_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    address = f"@piolet-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address.replace("@", "\0") if abstract else address)
        manager.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        notify.ready()
        notify.ready()
        assert manager.recv(100) == b"READY=1"
        manager.setblocking(False)
        with pytest.raises(BlockingIOError):
            manager.recv(100)
    assert "NOTIFY_SOCKET" not in os.environ


def test_nobody_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    notify.ready()
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify.ready()
