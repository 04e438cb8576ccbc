"""`piolet doctor`: programs and accounts that are missing, and daemons that do not answer."""

from __future__ import annotations

import dataclasses
import socket
from pathlib import Path

import pytest
from piolet.doctor import BAD, WARN, Machine, daemons

from tests.unit.doctor.conftest import VERSION, bad, daemon, only, program, refusal


@pytest.mark.parametrize(
    ("name", "text", "state"),
    [
        ("entry", "images whose entrypoint runs", BAD),
        ("task", "vet steps run it", BAD),
        ("skopeo", "no image can be pulled", BAD),
        ("mksquashfs", "no image can be converted", BAD),
        ("squashfuse", ".sqsh files", WARN),
        ("unsquashfs", "what enroot wrote into users' .sqsh files is not read", WARN),
    ],
)
def test_a_program_is_missing(machine: Machine, tmp_path: Path, name: str, text: str, state: str) -> None:
    (tmp_path / "bin" / name).unlink()
    only(machine, "programs", text, "install", state)


def test_a_node_without_the_image_service_saves_containers_with_mksquashfs(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "bin" / "mksquashfs").unlink()
    alone = dataclasses.replace(machine, here=lambda name: name == "pioletd")
    only(alone, "programs", "no container can be saved here", "install squashfs-tools", WARN)


def test_a_scanner_is_missing(machine: Machine, tmp_path: Path) -> None:
    images = dataclasses.replace(machine.config.images, scanner=(f"{tmp_path}/bin/scan", "{layout}"))
    config = dataclasses.replace(machine.config, images=images)
    only(dataclasses.replace(machine, config=config), "programs", "no image can be scanned", "[images] scanner")


def test_crun_is_missing(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "bin/crun").unlink()
    assert not bad(machine), "nobody needs it with the native builder"
    environment = dataclasses.replace(machine.config.environment, runtime="crun")
    config = dataclasses.replace(machine.config, environment=environment)
    only(dataclasses.replace(machine, config=config), "programs", "runtime = 'crun' needs it", "install it")


def test_an_account_is_missing(machine: Machine) -> None:
    config = dataclasses.replace(machine.config, node=dataclasses.replace(machine.config.node, account="nobody-here"))
    only(dataclasses.replace(machine, config=config), "accounts", "nobody-here", "systemd-sysusers")


@pytest.mark.parametrize(
    ("name", "what"), [("node", "containers"), ("vet", "vetting"), ("score", "scoring"), ("images", "images")]
)
def test_a_daemon_is_down(machine: Machine, tmp_path: Path, name: str, what: str) -> None:
    path = tmp_path / f"{name}.sock"
    path.unlink()
    only(machine, "daemons", f"{what}: the socket {path} is not there", "systemctl start piolet")
    dead = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    dead.bind(str(path))
    dead.close()
    only(machine, "daemons", f"{what}: nobody listens on {path}", "systemctl start piolet")


@pytest.mark.parametrize(
    ("name", "answer", "text"),
    [
        ("node", refusal(VERSION + 1), f"speaks version {VERSION + 1} of the protocol, this command {VERSION}"),
        ("node", bytes(16), "speaks another version"),
        ("node", b"", "does not answer within 0.2 s"),
        ("images", b"", "does not answer within 0.2 s"),
        ("images", b'{"error":{}}', "piolet-imaged speaks another version"),
        ("images", b"no message", "does not answer within 0.2 s"),
    ],
)
def test_a_daemon_of_another_version_or_that_hangs(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, answer: bytes, text: str
) -> None:
    monkeypatch.setattr(daemons, "_WAIT_S", 0.2)
    (tmp_path / f"{name}.sock").unlink()
    with daemon(str(tmp_path / f"{name}.sock"), answer):
        only(machine, "daemons", text, "systemctl restart piolet")


@pytest.mark.parametrize(
    ("name", "said", "text", "hint", "state"),
    [
        ("mksquashfs", "mksquashfs version 4.4 (2019)", "4.5 is the oldest that works", "newer one", BAD),
        ("skopeo", "skopeo version 1.4.1", "has the version 1.4; 1.9 is the oldest", "newer one", BAD),
        ("skopeo", "hello", "does not say its version", "1.9 or newer", WARN),
    ],
)
def test_a_program_is_too_old(
    machine: Machine, tmp_path: Path, name: str, said: str, text: str, hint: str, state: str
) -> None:
    program(tmp_path / "bin" / name, f"echo '{said}'")
    only(machine, "programs", text, hint, state)


def test_a_squashfuse_of_fuse_2(machine: Machine, tmp_path: Path) -> None:
    """As it is in EPEL and in SLES 15: it starts, and serves nothing."""
    (tmp_path / "bin/squashfuse").write_bytes(b"\x7fELF\0libc.so.6\0libfuse.so.2\0")
    only(machine, "programs", "was built with FUSE 2", "piolet-squashfuse", WARN)
    (tmp_path / "bin/squashfuse").write_bytes(b"\x7fELF\0libc.so.6\0libfuse3.so.3\0")
    assert not bad(machine)


def test_a_program_that_cannot_be_run(machine: Machine, tmp_path: Path) -> None:
    """The others are looked at all the same."""
    (tmp_path / "bin/skopeo").write_text("#!/no/interpreter\n")
    (tmp_path / "bin/zstd").unlink()
    found = bad(machine)
    assert found[0].text == f"{tmp_path}/bin/skopeo cannot be run: No such file or directory", found
    assert found[0].state == BAD and "no zstd" in found[1].text and len(found) == 2, found


def test_zstd_is_missing(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "bin/zstd").unlink()
    only(machine, "programs", "there is no zstd", "install zstd", WARN)
