"""Hostile bytes from both sides: neither the shims nor pioletd may crash, block or leak."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from piolet.base.errors import PioletError, WireError
from piolet.environment.definition import Definition
from piolet.images.info import Image
from piolet.transport import wire

from tests.wire.fuzz_shims import mutate
from tests.wire.messages import gpus, outcome, start, vet
from tests.wire.node_server import RunningServer

INPUTS = 100_000
SEED = 20261123


def test_the_shims_survive(sanitized: Path) -> None:
    """100,000 broken answers, environments and records each, under AddressSanitizer and UBSan."""
    asan = subprocess.run(["cc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    command = [sys.executable, str(Path(__file__).with_name("fuzz_shims.py")), str(sanitized), str(SEED), str(INPUTS)]
    root = Path(__file__).resolve().parents[2]
    environment = {
        **os.environ,
        "LD_PRELOAD": asan.stdout.strip(),
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONPATH": str(root),
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert f"{INPUTS} inputs" in done.stdout


def test_decoding_start_survives() -> None:
    """100,000 broken START messages: each is a Start or a WireError, and a Start is within the limits."""
    random_ = random.Random(SEED)
    good = [
        start(Definition("x.toml").to_json()),
        start(b"", groups=(1, 2, 3)),
        start(b"x" * 5000, groups=tuple(range(40))),
    ]
    accepted = 0
    for _ in range(INPUTS):
        try:
            decoded = wire.decode_start(mutate(random_, random_.choice(good)))
        except WireError as error:
            assert error.message and "\n" not in error.message
            continue
        accepted += 1
        assert len(decoded.groups) <= 1024 and len(decoded.definition) <= 98304
    assert 0 < accepted < INPUTS


def test_decoding_vet_survives() -> None:
    """100,000 broken VET messages: each is a plan or a WireError."""
    random_ = random.Random(SEED)
    good = [vet(b"{}"), vet(b'{"a":1}' * 300)]
    accepted = 0
    for _ in range(INPUTS):
        try:
            plan = wire.decode_vet(mutate(random_, random_.choice(good)))
        except WireError as error:
            assert error.message and "\n" not in error.message
            continue
        accepted += 1
        assert 0 < len(plan) <= 98304
    assert 0 < accepted < INPUTS


def test_decoding_gpus_survives() -> None:
    """100,000 broken GPUS messages: each is names of GPUs, no longer than a name can be, or a WireError."""
    random_ = random.Random(SEED)
    good = [gpus(b""), gpus(b"0,1,2,3"), gpus(b"GPU-00000000-0000-0000-0000-000000000000"), gpus(b"7" * 4072)]
    accepted = 0
    for _ in range(INPUTS):
        try:
            names = wire.decode_gpus(mutate(random_, random_.choice(good))).names
        except WireError as error:
            assert error.message and "\n" not in error.message
            continue
        accepted += 1
        assert all(0 < len(name) <= 84 and name.isascii() and name.isprintable() for name in names)
    assert 0 < accepted < INPUTS


def test_decoding_outcomes_survives() -> None:
    """100,000 broken OUTCOME messages: each is of a job and has no more ways than there are, or is a WireError."""
    random_ = random.Random(SEED)
    good = [outcome([]), outcome([(0, 0, 4)]), outcome([(9, n, 1) for n in range(32)], others=3, array=(5, 4), end=99)]
    accepted = 0
    for _ in range(INPUTS):
        try:
            found = wire.decode_outcome(mutate(random_, random_.choice(good)))
        except WireError as error:
            assert error.message and "\n" not in error.message
            continue
        accepted += 1
        assert found.job > 0 and len(found.ended) <= 32 and len(found.node) <= 64
    assert 0 < accepted < INPUTS


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    """A real server process on a socket of its own, with a monitor that builds nothing."""
    running = RunningServer(tmp_path)
    yield running
    running.stop()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may send START: run the tests as root")
def test_the_server_survives(server: RunningServer) -> None:
    """5,000 hostile connections to the live server: broken messages, hang-ups, silence; it still answers."""
    random_ = random.Random(SEED)
    good = start(Definition("x.toml", set_env={"A": "1"}).to_json())
    silent = []
    for number in range(5_000):
        connection = server.connect()
        match number % 5:
            case 0:
                silent.append(connection)
                if len(silent) > 50:
                    silent.pop(0).close()
                continue
            case 1:
                connection.send(random_.randbytes(random_.randrange(1, 2000)))
            case 2:
                connection.send(mutate(random_, good) or b"\0")
            case 3:
                socket.send_fds(connection, [mutate(random_, good) or b"\0"], [0, 1, 2])
            case _:
                connection.send(b"\0" * 150_000)
        connection.close()
    answer, descriptors = server.ask(good)
    assert answer.kind == "ready"
    for descriptor in descriptors:
        os.close(descriptor)
    for connection in silent:
        connection.close()
    server.wait_for_descriptors(at_most=40)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may send START: run the tests as root")
def test_a_plan_that_does_not_fit_is_refused(server: RunningServer) -> None:
    """The definition fits into its message; in the request to the monitor its text is escaped twice."""
    image = Image("x.sqsh", "user", path="/x.sqsh")
    definition = Definition("x.toml", image=image, entrypoint=("\u00e9" * 45_000,))
    answer, _ = server.ask(start(definition.to_json()))
    assert answer.message == "the environment has too much in it to be built"
    small = Definition("x.toml", image=image)
    assert server.ask(start(small.to_json()))[0].message == "not in this test"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may send START: run the tests as root")
def test_refusals_are_sentences(server: RunningServer) -> None:
    """What cannot be used is refused with a message that says why."""
    good = start(Definition("x.toml").to_json())
    newer = bytearray(good)
    newer[4] = 3
    cases = {
        "is none": b"abc",
        "not a message of Piolet": b"\0" * 200,
        "version 3 of the protocol": bytes(newer),
        "cut short": good[:-1],
        "not JSON": start(b"{"),
        "not of version": start(b"{}"),
        "the kind 7": good[:6] + b"\x07\0" + good[8:],
    }
    for expected, data in cases.items():
        answer, _ = server.ask(data)
        assert answer.kind == "error"
        assert expected in answer.message, answer.message


@pytest.mark.skipif(os.geteuid() != 0, reason="changing the user needs root")
def test_only_root_may_start(server: RunningServer) -> None:
    """A peer that is not root is refused, whatever it sends."""
    server.path.chmod(0o666)
    for directory in [server.path.parent, *server.path.parents]:
        if directory.stat().st_uid == 0 and str(directory).startswith("/tmp/"):
            directory.chmod(directory.stat().st_mode | 0o011)
    code = (
        "import os, socket, sys\n"
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
        "s.connect(sys.argv[1])\n"
        "try:\n    s.send(bytes.fromhex(sys.argv[2]))\nexcept BrokenPipeError:\n    pass\n"
        "sys.stdout.buffer.write(s.recv(8192))\n"
    )
    data = start(Definition("x.toml").to_json()).hex()
    done = subprocess.run(
        ["/usr/bin/python3", "-c", code, str(server.path), data],
        capture_output=True,
        user=65534,
        group=65534,
        extra_groups=[],
        timeout=30,
        check=False,
    )
    assert b"only Slurm, as root" in done.stdout, done.stderr


def test_an_oversized_definition_is_refused() -> None:
    """Lengths beyond the limits are refused before anything is believed."""
    with pytest.raises(PioletError, match="impossible lengths"):
        wire.decode_start(start(b"x" * 98305))
    with pytest.raises(PioletError, match="impossible lengths"):
        wire.decode_start(start(b"", groups=tuple(range(1025))))
    with pytest.raises(PioletError, match="more than 106496 bytes"):
        wire.decode_start(b"x" * 200_000)
