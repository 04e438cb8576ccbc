"""What a vet step runs on a node, and the desk of pioletd that it talks to: a refusal is read, and a loss is told."""

from __future__ import annotations

import selectors
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from piolet.node.server import vetdesk
from piolet.node.server.vetdesk import VetDesk
from piolet.transport import wire

from tests.support import spools
from tests.support.loops import turning
from tests.support.waiting import wait_until

TASK = Path(__file__).resolve().parents[2] / "build" / "plugins" / "piolet-vet-task"
LINE = b'{"piolet-vet":"end"}\n'


def listen(directory: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(directory / "vet.sock"))
    listener.listen(64)
    listener.settimeout(10)
    return listener


def start(directory: Path, *words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [str(TASK), str(directory / "vet.sock"), *words], env={"SLURM_PIOLET_VET": "{}"}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_it_prints_what_it_is_told(tmp_path: Path) -> None:
    with listen(tmp_path) as listener:
        task = start(tmp_path)
        channel, _ = listener.accept()
        assert wire.decode_vet(channel.recv(wire.VET_MAX)) == "{}"
        channel.send(LINE)
        channel.close()
        assert task.communicate(timeout=10) == (LINE, b"")
        assert task.returncode == 0


def test_it_hands_over_what_srun_decided(tmp_path: Path) -> None:
    with listen(tmp_path) as listener:
        task = start(tmp_path, "decision")
        channel, _ = listener.accept()
        assert wire.decode_vet(channel.recv(wire.VET_MAX), wire.DECISION) == "{}"
        channel.close()
        assert task.communicate(timeout=10) == (b"", b"") and task.returncode == 0


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (wire.encode_error("there is no room", "try again"), b"piolet: error: there is no room\nhint: try again\n"),
        (LINE, b"piolet: error: the connection to pioletd broke: Connection reset by peer\nhint: look at the log of "),
        (b"", b"piolet: error: the connection to pioletd broke: Connection reset by peer\nhint: look at the log of "),
    ],
    ids=["refused", "broken off", "no word"],
)
def test_a_connection_that_is_reset(tmp_path: Path, said: bytes, told: bytes) -> None:
    """Its message was not read: the reset comes first, and what was said before it is still there."""
    with listen(tmp_path) as listener:
        task = start(tmp_path)
        channel, _ = listener.accept()
        if said:
            channel.send(said)
        wait_for_message(channel)
        channel.close()
        out, err = task.communicate(timeout=10)
    assert (task.returncode, out) == (1, LINE if said == LINE else b"")
    assert err.startswith(told)


def wait_for_message(channel: socket.socket) -> None:
    """Return when there is something to read, without reading it."""
    channel.settimeout(10)
    assert channel.recv(1, socket.MSG_PEEK)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[VetDesk]:
    """A desk whose zygote answers nothing, in a loop of its own."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    selector = selectors.DefaultSelector()
    with listen(tmp_path) as listener:
        one = VetDesk(selector, listener, ours, spools.spool(tmp_path / "spool")[1])
        with turning(selector):
            yield one
    theirs.close()


def test_too_many_vettings_are_refused_with_a_sentence(tmp_path: Path, desk: VetDesk) -> None:
    tasks = [start(tmp_path) for _ in range(vetdesk._TASKS.each + 4)]
    try:
        wait_until(lambda: len(ended(tasks)) >= 4, 60, "the end of those that are too many")
        with pytest.raises(AssertionError):  # of the others none
            wait_until(lambda: len(ended(tasks)) > 4, 0.5)
        refused = ended(tasks)
        for task in refused:
            _, err = task.communicate(timeout=10)
            assert task.returncode == 1
            assert err == b"piolet: error: too many vettings run on this node at once\nhint: try again later\n"
    finally:
        for task in tasks:
            task.kill()
            task.communicate()


def ended(tasks: list[subprocess.Popen[bytes]]) -> list[subprocess.Popen[bytes]]:
    return [task for task in tasks if task.poll() is not None]
