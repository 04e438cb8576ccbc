"""Root's process for the recording of steps: what it keeps running, what it opens for it, and when it begins anew."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import signal
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from piolet.node.root import observing
from piolet.node.root.observing import Observing

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, as pioletd has")


class Root:
    """The process, and what its samplers say: a line of JSON each."""

    def __init__(self, needs: list[str]) -> None:
        self.alive, stop = socket.socketpair()
        answer, said = os.pipe()
        account = pwd.getpwnam("nobody")

        def observe(_: socket.socket, held: Mapping[str, int]) -> None:
            text = {path: os.pread(descriptor, 100, 0).decode() for path, descriptor in held.items()}
            line = {"pid": os.getpid(), "uid": os.getuid(), "held": text, "opened": _opened(needs)}
            os.write(1, json.dumps(line).encode() + b"\n")
            signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
            time.sleep(100)

        self.pid = os.fork()
        if self.pid == 0:
            try:
                self.alive.close()
                os.dup2(said, 1)
                Observing(account, observe, needs, stop).run()
            finally:
                os._exit(0)
        stop.close()
        os.close(said)
        self._lines = os.fdopen(answer)

    def told(self) -> dict[str, Any]:
        """Return what the next sampler says."""
        found: dict[str, Any] = json.loads(self._lines.readline())
        return found

    def end(self) -> str:
        """End the daemon; return what else its samplers said."""
        self.alive.close()
        os.waitpid(self.pid, 0)
        with self._lines:
            return self._lines.read()


def _opened(paths: list[str]) -> bool:
    """Return whether this process can open one of the files by itself."""
    for path in paths:
        with contextlib.suppress(OSError):
            os.close(os.open(path, os.O_RDONLY))
            return True
    return False


@pytest.fixture
def secret(tmp_path: Path) -> Iterator[Path]:
    """A place where only root may open files."""
    tmp_path.chmod(0o755)
    place = tmp_path / "debug"
    place.mkdir(mode=0o700)
    yield place / "energy"


def test_what_only_root_may_open_is_handed_to_an_account_that_may_not(secret: Path) -> None:
    secret.write_text("262143")
    root = Root([str(secret)])
    told = root.told()
    assert (told["uid"], told["held"], told["opened"]) == (
        pwd.getpwnam("nobody").pw_uid,
        {str(secret): "262143"},
        False,
    )
    assert root.end() == ""


def test_a_sampler_that_dies_is_started_again(secret: Path) -> None:
    root = Root([str(secret)])
    first = root.told()
    os.kill(first["pid"], signal.SIGKILL)
    assert root.told()["pid"] != first["pid"]
    root.end()


def test_what_comes_to_be_later_is_opened_then(secret: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Lustre's statistics, when it is mounted."""
    monkeypatch.setattr(observing, "_LOOK_S", 0.1)
    root = Root([str(secret)])
    assert root.told()["held"] == {}
    secret.write_text("5")
    assert root.told()["held"] == {str(secret): "5"}
    root.end()
