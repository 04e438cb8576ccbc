"""A machine on which all is well, and what is found on it when it is not."""

from __future__ import annotations

import dataclasses
import os
import pwd
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from piolet import doctor
from piolet._wire import ffi
from piolet.doctor import BAD, WARN, Finding, Machine
from piolet.node.root import imagemounts
from piolet.node.root.imagemounts import Choice
from piolet.site.config import Config

HELP = "Options provided by plugins:\n  --environment=NAME\n  --score[=...]\n  --vet=PROTOCOL\n"
ME = pwd.getpwuid(os.geteuid()).pw_name
HEADER = struct.Struct("=IHHII")
PONG = b'{"result":{"pong":true}}'
MAGIC, VERSION, ERROR = (ffi.integer_const(f"PIOLET_{name}") for name in ("MAGIC", "VERSION", "ERROR"))


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """A machine on which all is well, made of files and of a thread that answers as pioletd."""
    base = Config()
    bin_ = tmp_path / "bin"
    for directory in ("bin", "store", "proc/sys/user", "proc/sys/kernel", "dev"):
        (tmp_path / directory).mkdir(parents=True)
    for name in ("crun", "entry", "task", "squashfuse", "zstd", "unsquashfs"):
        program(bin_ / name, "")
    program(bin_ / "skopeo", "echo skopeo version 1.9.3")
    program(bin_ / "mksquashfs", "echo 'mksquashfs version 4.5.1 (2022/03/17)'")
    for name in ("loop-control", "fuse"):
        (tmp_path / "dev" / name).touch()
        (tmp_path / "dev" / name).chmod(0o666)
    (tmp_path / "store").chmod(0o711)
    srun(tmp_path, HELP)
    program(tmp_path / "bin/scontrol", "echo 'ProctrackType = proctrack/cgroup'; echo 'TaskProlog = (null)'")
    (tmp_path / "proc/filesystems").write_text("nodev\toverlay\n\tsquashfs\n")
    (tmp_path / "proc/sys/user/max_user_namespaces").write_text("1000\n")
    imagemounts.note(Choice("idmap", True), str(tmp_path))
    environment = dataclasses.replace(
        base.environment, crun=f"{bin_}/crun", entry_program=f"{bin_}/entry", squashfuse=f"{bin_}/squashfuse"
    )
    images = dataclasses.replace(
        base.images, store=str(tmp_path / "store"), socket=str(tmp_path / "images.sock"), account=ME,
        skopeo=f"{bin_}/skopeo", mksquashfs=f"{bin_}/mksquashfs",
    )  # fmt: skip
    node = dataclasses.replace(
        base.node, socket=str(tmp_path / "node.sock"), vet_socket=str(tmp_path / "vet.sock"),
        score_socket=str(tmp_path / "score.sock"), vet_program=f"{bin_}/task", account=ME,
        state=str(tmp_path),
    )  # fmt: skip
    central = dataclasses.replace(base.central, account=ME)
    forward = dataclasses.replace(base.forward, account=ME)
    (tmp_path / "events").mkdir()
    (tmp_path / "events" / f"node-{'a' * 16}-{1:020d}.jsonl").touch()
    own = dataclasses.replace(base.events, spool=str(tmp_path / "events"), socket=str(tmp_path / "events.sock"))
    config = dataclasses.replace(
        base, environment=environment, images=images, node=node, central=central, forward=forward, events=own
    )
    listeners = [listen(path) for path in (node.vet_socket, node.score_socket)]
    listeners += [daemon(node.socket), daemon(images.socket, answer=PONG)]
    (tmp_path / "piolet.toml").touch(0o644)
    yield Machine(
        config, tmp_path / "piolet.toml", None, tmp_path / "proc", tmp_path / "dev", "6.18.0-test", str(bin_),
        {"PATH": "/usr/bin:/bin"}, lambda _: True, user=None,
    )  # fmt: skip
    for one in listeners:
        one.shutdown(socket.SHUT_RDWR)  # a close alone does not wake the thread that waits in accept
        one.close()


def program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def srun(tmp_path: Path, text: str, errors: str = "") -> None:
    (tmp_path / "help").write_text(text)
    (tmp_path / "errors").write_text(errors)
    program(tmp_path / "bin/srun", f"cat {tmp_path}/help; cat {tmp_path}/errors >&2")


def listen(path: str) -> socket.socket:
    one = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    one.bind(path)
    one.listen(8)
    return one


def refusal(version: int) -> bytes:
    """Return what pioletd of that version answers to a message that it does not know."""
    return HEADER.pack(MAGIC, version, ERROR, 2064, 0) + bytes(2048)


def daemon(path: str, answer: bytes = refusal(VERSION)) -> socket.socket:
    """Answer whatever comes; nothing to an empty answer."""
    one = listen(path)

    def serve() -> None:
        while True:
            try:
                channel, _ = one.accept()
            except OSError:
                return
            with channel:
                if channel.recv(100) and answer:
                    channel.send(answer)
                    channel.recv(100)

    threading.Thread(target=serve, daemon=True).start()
    return one


def bad(machine: Machine) -> list[Finding]:
    found = [finding for finding in doctor.examine(machine) if finding.state in (BAD, WARN)]
    assert all(finding.hint for finding in found), found
    return found


def only(machine: Machine, check: str, text: str, hint: str, state: str = BAD) -> None:
    """Assert that this is found, and nothing else."""
    found = bad(machine)
    assert len(found) == 1, found
    assert (found[0].check, found[0].state) == (check, state), found
    assert text in found[0].text and hint in found[0].hint, found
