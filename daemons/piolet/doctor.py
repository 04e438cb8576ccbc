"""Looks at an installation of Piolet on this machine, and says what is wrong and how to mend it.

Every check is a function that yields findings; `CHECKS` is all of them, in order. A check looks and changes nothing,
is bounded in time, and never raises: what cannot be looked at is a finding, too.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import re
import shutil
import signal
import socket
import stat
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from piolet._wire import ffi
from piolet.config import Config
from piolet.environment import mounts

OK, WARN, BAD, SKIPPED = "ok", "warning", "bad", "skipped"
OPTIONS = {"environment": "piolet_environment.so", "vet": "piolet_vet.so", "score": "piolet_score.so"}
_KERNEL_LEAST, _KERNEL_STORE = (5, 12), (6, 2)
_WAIT_S = 3.0
_SRUN_S = 20.0
_SPACE_LEAST = 0.05
_CLONE_NEWUSER, _CLONE_NEWNS = 0x10000000, 0x00020000
_NOBODY = 65534


@dataclass(frozen=True)
class Finding:
    """What one look found; `hint` is how to mend it."""

    check: str
    state: str
    text: str
    hint: str = ""


@dataclass(frozen=True)
class Machine:
    """What is looked at; tests have their own.

    here   whether a program of Piolet is installed on this machine: on a login node there is no pioletd
    """

    config: Config
    proc: Path = Path("/proc")
    release: str = field(default_factory=lambda: os.uname().release)
    path: str = field(default_factory=lambda: os.environ.get("PATH", os.defpath))
    environ: dict[str, str] = field(default_factory=lambda: dict(os.environ))
    here: Callable[[str], bool] = lambda name: shutil.which(name) is not None


Check = Callable[[Machine], Iterator[Finding]]


def examine(machine: Machine) -> Iterator[Finding]:
    """Yield the findings of every check."""
    for check in CHECKS:
        name = check.__name__.strip("_").replace("_", " ")
        try:
            yield from check(machine)
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            yield Finding(name, WARN, f"it could not be looked at: {error.strerror}{where}", "look again as root")


def _plugins(machine: Machine) -> Iterator[Finding]:
    """Whether srun has our options; when it has not, Slurm says why."""
    srun = shutil.which("srun", path=machine.path)
    if srun is None:
        yield Finding("plugins", SKIPPED, "there is no srun on this machine")
        return
    done = _ask(machine, srun, "-vv", "--help")
    if done is None:
        yield Finding(
            "plugins", BAD, f"{srun} --help did not end within {_SRUN_S:g} s", "look at the network and at DNS"
        )
        return
    text, said = done.stdout, done.stderr
    for option, plugin in OPTIONS.items():
        if re.search(rf"^\s*--{option}[=\[\s]", text, re.MULTILINE):
            yield Finding("plugins", OK, f"srun knows --{option}")
        else:
            yield _missing(option, plugin, said.splitlines())


def _ask(machine: Machine, *command: str) -> subprocess.CompletedProcess[str] | None:
    """Return what a command of Slurm's said, or None where it did not end in time."""
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=_SRUN_S,
            check=False, env=machine.environ,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return None


def _missing(option: str, plugin: str, said: list[str]) -> Finding:
    own = [line for line in said if plugin in line]
    why = next((line for line in own if "ncompatible" in line), None)
    if why is not None:
        built = re.search(r"version \((\S+)\)", why)
        of = f", which was built for Slurm {built[1]}" if built else ""
        hint = "install the piolet-plugins that were built for the Slurm that runs here"
        return Finding("plugins", BAD, f"Slurm refuses {plugin}{of}: --{option} is missing", hint)
    if own:
        hint = "see that the file is there, in Slurm's PluginDir unless plugstack.conf names its directory"
        return Finding("plugins", BAD, f"Slurm cannot load {plugin}: {own[0].rpartition(': ')[2]}", hint)
    errors = [line for line in said if "error:" in line]
    if errors and "spank" not in "".join(errors):
        reason = errors[-1].partition("error: ")[2]
        return Finding("plugins", BAD, f"srun does not start: {reason}", "see slurm.conf, and `srun --version`")
    hint = "plugstack.conf, beside slurm.conf, needs the line: include /etc/slurm/plugstack.conf.d/*.conf"
    return Finding("plugins", BAD, f"no line of plugstack.conf loads {plugin}: --{option} is missing", hint)


def _kernel(machine: Machine) -> Iterator[Finding]:
    """Whether the kernel is new enough for the mounts that containers are made of."""
    match = re.match(r"(\d+)\.(\d+)", machine.release)
    version = (int(match[1]), int(match[2])) if match else (0, 0)
    if version < _KERNEL_LEAST:
        least = "{}.{}".format(*_KERNEL_LEAST)
        text = f"Linux {machine.release} cannot make containers without root: {least} is the oldest"
        yield Finding("kernel", BAD, text, "boot a newer kernel")
    elif version < _KERNEL_STORE:
        text = f"Linux {machine.release} has no idmapped SquashFS: steps with images of the site's store fail"
        yield Finding("kernel", BAD, text, "boot Linux 6.2 or newer")
    else:
        yield Finding("kernel", OK, f"Linux {machine.release}")
    known = (machine.proc / "filesystems").read_text("ascii").split()
    for name in ("overlay", "squashfs"):
        if name not in known:
            text = f"the kernel does not know the file system {name} (it may load it when it is asked for)"
            yield Finding("kernel", WARN, text, f"modprobe {name}, and note it in /etc/modules-load.d")


def _user_namespaces(machine: Machine) -> Iterator[Finding]:
    """Whether an ordinary user may make a user namespace: settings first, since they say how to mend it."""
    name = "user namespaces"
    for setting, bad in (
        ("user/max_user_namespaces", "0"),
        ("kernel/unprivileged_userns_clone", "0"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1"),
    ):
        with contextlib.suppress(OSError):
            if (machine.proc / "sys" / setting).read_text("ascii").strip() == bad:
                key, good = setting.replace("/", "."), "15000" if bad == "0" and "max" in setting else str(1 - int(bad))
                hint = f"sysctl -w {key}={good}, and note it in /etc/sysctl.d"
                yield Finding(name, BAD, f"users may not make them: {key} is {bad}", hint)
                return
    if _can_unshare():
        yield Finding(name, OK, "users may make them")
    else:
        hint = "a security module or a container around this machine forbids it; see the kernel's log"
        yield Finding(name, BAD, "users may not make them: unshare(2) is refused", hint)


def _can_unshare() -> bool:
    """Try it in a child, as nobody where this is root."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setresgid(_NOBODY, _NOBODY, _NOBODY)
                os.setresuid(_NOBODY, _NOBODY, _NOBODY)
            status = 1 if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWUSER | _CLONE_NEWNS) else 0
        finally:
            os._exit(status)
    end = time.monotonic() + _WAIT_S
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status == 0
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return False


def _programs(machine: Machine) -> Iterator[Finding]:
    """Whether the programs are there that the configuration names."""
    own, images = machine.config.environment, machine.config.images
    node, service = machine.here("pioletd"), machine.here("piolet-imaged")
    crun = own.runtime == "crun"
    wanted = [
        (node, crun, own.crun, "runtime = 'crun' needs it", "install crun, or set runtime = 'native'"),
        (node, True, own.entry_program, "images whose entrypoint runs need it", "install piolet-node again"),
        (node, True, machine.config.node.vet_program, "vet steps run it", "install piolet-node again"),
        (node, False, own.squashfuse, ".sqsh files that users bring cannot be mounted", "install squashfuse"),
        (service, True, images.skopeo, "no image can be pulled", "install skopeo"),
        (service, True, images.mksquashfs, "no image can be converted", "install squashfs-tools 4.5 or newer"),
    ]
    for relevant, needed, path, why, hint in wanted:
        if not relevant or (path == own.crun and not crun):
            continue
        if os.access(path, os.X_OK):
            yield Finding("programs", OK, path)
        else:
            yield Finding("programs", BAD if needed else WARN, f"{path} is not there: {why}", hint)


def _accounts(machine: Machine) -> Iterator[Finding]:
    """Whether the accounts exist that the daemons run as."""
    wanted = {"pioletd": machine.config.node.account, "piolet-imaged": machine.config.images.account}
    for daemon, account in wanted.items():
        if not machine.here(daemon):
            continue
        try:
            pwd.getpwnam(account)
            yield Finding("accounts", OK, f"{daemon} has the account {account}")
        except KeyError:
            hint = "systemd-sysusers makes it, or: useradd --system --no-create-home " + account
            yield Finding("accounts", BAD, f"the account {account} of {daemon} does not exist", hint)


def _daemons(machine: Machine) -> Iterator[Finding]:
    """Whether the daemons answer on their sockets, in the protocol of this version."""
    node, images = machine.config.node, machine.config.images
    for name, daemon, path, unit in (
        ("containers", "pioletd", node.socket, "pioletd"),
        ("vetting", "pioletd", node.vet_socket, "pioletd"),
        ("scoring", "pioletd", node.score_socket, "pioletd"),
        ("images", "piolet-imaged", images.socket, "piolet-imaged"),
    ):
        if not machine.here(daemon):
            yield Finding("daemons", SKIPPED, f"{name}: {daemon} is not installed here")
            continue
        why, hint = _answers(path, unit, talk=name == "containers")
        yield Finding("daemons", BAD if why else OK, f"{name}: {why or f'{daemon} answers on {path}'}", hint)


def _answers(path: str, unit: str, *, talk: bool) -> tuple[str, str]:
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
        return _version(channel, path, unit) if talk else ("", "")


def _version(channel: socket.socket, path: str, unit: str) -> tuple[str, str]:
    ours, own_version = ffi.integer_const("PIOLET_MAGIC"), ffi.integer_const("PIOLET_VERSION")
    head = struct.Struct("=IHHII")
    restart = f"systemctl restart {unit}"
    try:
        # No message has this kind: pioletd refuses it with an ERROR, whose header has the version.
        channel.send(head.pack(ours, own_version, 0, head.size, 0))
        magic, version, *_ = head.unpack(channel.recv(4096)[: head.size])
    except (OSError, struct.error):
        return f"whoever listens on {path} does not answer within {_WAIT_S:g} s", restart
    if magic != ours or version != own_version:
        hint = f"{restart}, and install piolet-node and piolet-login of one release"
        return f"pioletd speaks version {version} of the protocol, this command {own_version}", hint
    return "", ""


def _store(machine: Machine) -> Iterator[Finding]:
    """Whether the image store is there, its owner's, and has room; whether this user may write is not the question."""
    if not (machine.here("piolet-imaged") or machine.here("pioletd")):
        yield Finding("store", SKIPPED, "no daemon of Piolet is installed here")
        return
    images = machine.config.images
    make = f"install -d -o {images.account} -g {images.account} -m 0711 {images.store}"
    try:
        found = os.stat(images.store)
    except FileNotFoundError:
        yield Finding("store", BAD, f"{images.store} is not there", make)
        return
    owner = next((entry.pw_name for entry in pwd.getpwall() if entry.pw_uid == found.st_uid), str(found.st_uid))
    space = os.statvfs(images.store)
    if not stat.S_ISDIR(found.st_mode):
        yield Finding("store", BAD, f"{images.store} is no directory", f"move it away; {make}")
    elif owner != images.account or not found.st_mode & stat.S_IWUSR:
        what = "its owner may not write" if owner == images.account else f"it belongs to {owner}"
        yield Finding("store", BAD, f"{images.store}: {images.account} cannot write there, as {what}", make)
    elif space.f_flag & os.ST_RDONLY and machine.here("piolet-imaged"):
        yield Finding("store", BAD, f"{images.store} is mounted read-only", "mount it with rw where images are pulled")
    elif found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        yield Finding("store", BAD, f"{images.store} may be written by others", f"chmod 0711 {images.store}")
    elif space.f_blocks and space.f_bavail / space.f_blocks < _SPACE_LEAST:
        left = f"{space.f_bavail / space.f_blocks:.1%} of {images.store} are free"
        yield Finding("store", WARN, left, "piolet image prune removes what nobody uses")
    else:
        yield Finding("store", OK, images.store)


def _task_prolog(machine: Machine) -> Iterator[Finding]:
    """Whether the site's TaskProlog, which Slurm runs in the container, is there; and what else the site mounts."""
    if not machine.here("pioletd"):
        return
    site = [mounts.parse(text) for text in machine.config.environment.mounts]
    for mount in site:
        if not os.path.exists(mount.source):
            text = f"{mount.source} is not there: containers on this node go without it"
            yield Finding("site mounts", WARN, text, "see mounts in [environment] of piolet.toml")
    scontrol = shutil.which("scontrol", path=machine.path)
    if scontrol is None:
        yield Finding("task prolog", SKIPPED, "there is no scontrol on this machine")
        return
    done = _ask(machine, scontrol, "show", "config")
    if done is None or done.returncode:
        yield Finding("task prolog", WARN, "scontrol show config does not work", "see that slurmctld answers")
        return
    found = re.search(r"^TaskProlog\s*=\s*(/.*\S)", done.stdout, re.MULTILINE)
    for path in found[1].split(",") if found else ():
        if any(Path(path).is_relative_to(mount.destination or mount.source) for mount in site):
            yield Finding("task prolog", OK, f"{path} is in every container")
        else:
            text = f"TaskProlog {path} is not in the containers, where Slurm runs it: steps with --environment fail"
            yield Finding("task prolog", BAD, text, f'add "{path}" to mounts in [environment] of piolet.toml')


CHECKS: tuple[Check, ...] = (
    _plugins, _kernel, _user_namespaces, _programs, _accounts, _daemons, _store, _task_prolog,
)  # fmt: skip
