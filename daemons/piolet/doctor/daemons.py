"""Piolet's daemons: what they need on this machine, and whether they answer."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import socket
import stat
import struct
from collections.abc import Callable, Iterator

from piolet._wire import ffi
from piolet.base.errors import PioletError
from piolet.container.fuse import is_of_fuse_2
from piolet.doctor.findings import BAD, OK, SKIPPED, WARN, Finding, Machine, ask
from piolet.images import protocol
from piolet.transport import packets

_WAIT_S = 3.0
Greeting = Callable[[socket.socket], tuple[int, int]]
_OLDEST = {"skopeo": ("--version", (1, 9)), "mksquashfs": ("-version", (4, 5))}


def programs(machine: Machine) -> Iterator[Finding]:
    """Whether the programs are there that the configuration names, and new enough."""
    own, images = machine.config.environment, machine.config.images
    node, service = machine.here("pioletd"), machine.here("piolet-imaged")
    unsquashfs = os.path.join(os.path.dirname(images.mksquashfs), "unsquashfs")
    unknown = "what enroot wrote into users' .sqsh files is not read"
    scanner = images.scanner[0] if images.scanner else ""
    wanted = [
        (node and own.runtime == "crun", BAD, own.crun, "runtime = 'crun' needs it", "install it, or use 'native'"),
        (node, BAD, own.entry_program, "images whose entrypoint runs need it", "install piolet-node again"),
        (node, BAD, machine.config.node.vet_program, "vet steps run it", "install piolet-node again"),
        (node, WARN, own.squashfuse, ".sqsh files that users bring cannot be mounted", "install squashfuse"),
        (service, BAD, images.skopeo, "no image can be pulled", "install skopeo"),
        (service, BAD, images.mksquashfs, "no image can be converted", "install squashfs-tools 4.5 or newer"),
        (node and not service, WARN, images.mksquashfs, "no container can be saved here", "install squashfs-tools 4.5"),
        (service, WARN, unsquashfs, unknown, "install squashfs-tools"),
        (service and bool(scanner), BAD, scanner, "no image can be scanned", "install it, or change [images] scanner"),
    ]  # fmt: skip
    for relevant, state, path, why, hint in wanted:
        if not relevant:
            continue
        if not os.access(path, os.X_OK):
            yield Finding("programs", state, f"{path} is not there: {why}", hint)
        elif path in (images.skopeo, images.mksquashfs):
            yield _version_of(machine, path, *_OLDEST["skopeo" if path == images.skopeo else "mksquashfs"])
        elif path == own.squashfuse and is_of_fuse_2(path):
            text = (
                f"{path} was built with FUSE 2, which takes over no mount: .sqsh files that users bring cannot be used"
            )
            yield Finding("programs", WARN, text, "build the package piolet-squashfuse, which has FUSE 3")
        else:
            yield Finding("programs", OK, path)
    if service and shutil.which("zstd", path=machine.path) is None:
        yield Finding("programs", WARN, "there is no zstd: images with zstd layers cannot be converted", "install zstd")


def _version_of(machine: Machine, path: str, option: str, least: tuple[int, int]) -> Finding:
    try:
        done = ask(machine, path, option)
    except OSError as error:
        return Finding("programs", BAD, f"{path} cannot be run: {error.strerror}", "install it again")
    found = re.search(r"version (\d+)\.(\d+)", done.stdout + done.stderr) if done is not None else None
    oldest = ".".join(map(str, least))
    if found is None:
        return Finding("programs", WARN, f"{path} does not say its version", f"see that it is {oldest} or newer")
    if (int(found[1]), int(found[2])) < least:
        text = f"{path} has the version {found[1]}.{found[2]}; {oldest} is the oldest that works"
        return Finding("programs", BAD, text, "install a newer one, or name it in [images] of piolet.toml")
    return Finding("programs", OK, f"{path}, {found[0]}")


def accounts(machine: Machine) -> Iterator[Finding]:
    """Whether the accounts exist that the daemons run as."""
    config = machine.config
    wanted = {
        "pioletd": config.node.account,
        "piolet-imaged": config.images.account,
        "piolet-central": config.central.account,
        "piolet-forward": config.forward.account,
    }
    for daemon, account in wanted.items():
        if not machine.here(daemon):
            continue
        try:
            pwd.getpwnam(account)
            yield Finding("accounts", OK, f"{daemon} has the account {account}")
        except KeyError:
            hint = "systemd-sysusers makes it, or: useradd --system --no-create-home " + account
            yield Finding("accounts", BAD, f"the account {account} of {daemon} does not exist", hint)


def daemons(machine: Machine) -> Iterator[Finding]:
    """Whether the daemons answer on their sockets, in the protocol of this version."""
    node, images = machine.config.node, machine.config.images
    for name, daemon, path, greet in (
        ("containers", "pioletd", node.socket, _greet_node),
        ("vetting", "pioletd", node.vet_socket, None),
        ("scoring", "pioletd", node.score_socket, None),
        ("images", "piolet-imaged", images.socket, _greet_images),
    ):
        if not machine.here(daemon):
            yield Finding("daemons", SKIPPED, f"{name}: {daemon} is not installed here")
            continue
        if os.geteuid() != 0 and _is_roots_alone(path):
            yield Finding("daemons", SKIPPED, f"{name}: {path} is for root alone, who can see whether {daemon} answers")
            continue
        why, hint = _answers(path, daemon, greet)
        good = f"{daemon} {'answers' if greet else 'takes connections'} on {path}"
        yield Finding("daemons", BAD if why else OK, f"{name}: {why or good}", hint)


def _is_roots_alone(path: str) -> bool:
    try:
        status = os.stat(path)
    except OSError:
        return False
    return stat.S_ISSOCK(status.st_mode) and status.st_uid == 0 and not status.st_mode & 0o077


def _answers(path: str, unit: str, greet: Greeting | None) -> tuple[str, str]:
    """Return what is wrong with a socket and how to mend it, or two empty strings."""
    start = f"systemctl start {unit}; journalctl -u {unit} tells why it ended"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as channel:
        channel.settimeout(_WAIT_S)
        try:
            channel.connect(path)
        except FileNotFoundError:
            return f"the socket {path} is not there: the daemon is down", start
        except ConnectionRefusedError:
            return f"nobody listens on {path}: the daemon is down", start
        except PermissionError:
            return f"the socket {path} may not be used", "look again as root, and at the modes of its directory"
        except OSError as error:
            return f"the daemon does not take a connection on {path}: {error}", f"systemctl restart {unit}"
        try:
            ours, theirs = greet(channel) if greet else (0, 0)
        except (OSError, PioletError, struct.error):
            return f"whoever listens on {path} does not answer within {_WAIT_S:g} s", f"systemctl restart {unit}"
    if ours != theirs:
        hint = f"systemctl restart {unit}, and install packages of one release"
        version = f"version {theirs}" if theirs else "another version"
        return f"{unit} speaks {version} of the protocol, this command {ours}", hint
    return "", ""


def _greet_node(channel: socket.socket) -> tuple[int, int]:
    """Return the version of the protocol here and that of pioletd; 0 where it is not one of ours."""
    magic, version = ffi.integer_const("PIOLET_MAGIC"), ffi.integer_const("PIOLET_VERSION")
    head = struct.Struct("=IHHII")
    # No message has this kind: pioletd refuses it with an ERROR, whose header has the version.
    channel.send(head.pack(magic, version, 0, head.size, 0))
    found, theirs, *_ = head.unpack(channel.recv(4096)[: head.size])
    return version, theirs if found == magic else 0


def _greet_images(channel: socket.socket) -> tuple[int, int]:
    protocol.send(channel, {"version": protocol.VERSION, "op": "ping"})
    data, descriptors = protocol.receive(channel)
    packets.close_all(descriptors)
    return protocol.VERSION, protocol.VERSION if "result" in protocol.unpack(data) else 0
