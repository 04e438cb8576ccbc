"""`piolet doctor`: each fault of an installation is found, and its hint says how to mend it."""

from __future__ import annotations

import dataclasses
import os
import pwd
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from piolet import doctor
from piolet._wire import ffi
from piolet.cli import doctor as cli_doctor
from piolet.cli.main import main
from piolet.doctor import BAD, OK, SKIPPED, WARN, Finding, Machine, configuration, daemons, findings, kernel, store
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
    for name in ("crun", "entry", "task", "squashfuse", "zstd"):
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
    config = dataclasses.replace(base, environment=environment, images=images, node=node)
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


def test_all_is_well(machine: Machine) -> None:
    found = list(doctor.examine(machine))
    assert {finding.state for finding in found} == {OK}, found
    assert {
        "configuration",
        "plugins",
        "kernel",
        "image mounts",
        "user namespaces",
        "programs",
        "accounts",
        "daemons",
        "store",
        "cage",
        "devices",
        "process tracking",
    } == {finding.check for finding in found}


def test_the_configuration(machine: Machine, tmp_path: Path) -> None:
    """A broken one is one finding, and the other checks go on with the defaults."""
    path = tmp_path / "piolet.toml"
    path.chmod(0o640)
    only(machine, "configuration", f"{path} may not be read by users", f"chmod 0644 {path}")
    path.write_text("[images]\nstroe = 1\n")
    config, fault = configuration.read(path)
    assert config == Config() and fault is not None
    assert (fault.state, f"{path}:2" in fault.text, "store" in fault.hint) == (BAD, True, True)
    only(dataclasses.replace(machine, config_fault=fault), "configuration", "unknown key 'stroe'", "did you mean")
    path.unlink()
    assert not bad(machine)


def test_the_command_goes_on_where_the_configuration_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "piolet.toml").write_text("[images\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["--config", str(tmp_path / "piolet.toml"), "doctor"]) == 1
    out, err = capsys.readouterr()
    assert out.startswith(f"bad      configuration: {tmp_path}/piolet.toml") and "skipped  plugins" in out and not err


def test_a_plugin_is_not_loaded(machine: Machine, tmp_path: Path) -> None:
    srun(tmp_path, HELP.replace("  --vet=PROTOCOL\n", ""))
    only(machine, "plugins", "no line of plugstack.conf loads piolet_vet.so", "include /etc/slurm/plugstack.conf.d")


def test_a_plugin_is_loaded_twice(machine: Machine, tmp_path: Path) -> None:
    srun(tmp_path, HELP, 'srun: spank: option "vet" provided by both piolet_vet.so and piolet_vet.so\n')
    only(machine, "plugins", "Slurm loads piolet_vet.so twice", "remove one")


def test_a_plugin_of_another_slurm(machine: Machine, tmp_path: Path) -> None:
    said = (
        "srun: plugin_load_from_file: Incompatible Slurm plugin /x/piolet_vet.so version (23.02.1)\n"
        "srun: error: spank: /x/piolet_vet.so: Incompatible plugin version\n"
    )
    srun(tmp_path, HELP.replace("  --vet=PROTOCOL\n", ""), said)
    only(machine, "plugins", "which was built for Slurm 23.02.1", "piolet-plugins")


def test_the_file_of_a_plugin_is_missing(machine: Machine, tmp_path: Path) -> None:
    said = "srun: error: spank: piolet_score.so: Dlopen of plugin file failed\n"
    srun(tmp_path, HELP.replace("  --score[=...]\n", ""), said)
    only(machine, "plugins", "cannot load piolet_score.so: Dlopen of plugin file failed", "PluginDir")


def test_srun_itself_does_not_start(machine: Machine, tmp_path: Path) -> None:
    srun(tmp_path, "", "srun: error: resolve_ctls_from_dns_srv: res_nsearch error: Unknown host\n")
    only(machine, "plugins", "srun does not start: resolve_ctls_from_dns_srv", "see slurm.conf")


@pytest.mark.parametrize(
    ("said", "text", "hint"),
    [
        ("spank: Failed to open /etc/slurm/plugstack.conf: Permission denied", "not start: Failed to open", "chmod"),
        ("spank: /etc/slurm/x.conf:1: Failed to load plugin x.so. Aborting.", "x.so. Aborting.", "required"),
    ],
)
def test_srun_does_not_start_for_what_plugstack_says(
    machine: Machine, tmp_path: Path, said: str, text: str, hint: str
) -> None:
    """No word of lines that are not there: they are, and Slurm does not come to them."""
    srun(tmp_path, "", f"srun: error: {said}\nsrun: error: Plug-in initialization failed\n")
    only(machine, "plugins", text, hint)


def test_our_plugin_cannot_be_loaded_and_is_required(machine: Machine, tmp_path: Path) -> None:
    place = "/usr/lib64/slurm/piolet_environment.so"
    srun(
        tmp_path,
        "",
        f"srun: error: plugin_load_from_file: dlopen({place}): {place}: invalid ELF header\n"
        f"srun: error: spank: {place}: Dlopen of plugin file failed\n"
        f"srun: error: spank: /etc/slurm/plugstack.conf.d/piolet.conf:1: Failed to load plugin {place}. Aborting.\n"
        "srun: error: Plug-in initialization failed\n",
    )
    found = [finding.text for finding in bad(machine)]
    assert found[0] == "Slurm cannot load piolet_environment.so: invalid ELF header"
    assert len(found) == 2 and found[1].startswith("srun does not start: /etc/slurm/plugstack.conf.d/piolet.conf:1"), (
        found
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else")
def test_srun_is_asked_as_a_user(machine: Machine, tmp_path: Path) -> None:
    """What root may read says nothing: a plugstack.conf with the mode 0600 stops every srun but root's."""
    srun(tmp_path, HELP)
    program(tmp_path / "bin/srun", f"[ $(id -u) = 4711 ] || cat {tmp_path}/help")
    for directory in (tmp_path, *tmp_path.parents):
        if directory != Path("/"):
            directory.chmod(directory.stat().st_mode | 0o011)
    assert len(bad(dataclasses.replace(machine, user=4711))) == len(doctor.slurm.OPTIONS)
    assert not bad(machine)


def test_a_kernel_that_is_too_old(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagemounts, "can_set_attributes", lambda: False)
    only(dataclasses.replace(machine, release="5.10.0-8-amd64"), "kernel", "5.12 is the oldest", "boot a newer kernel")


@pytest.mark.parametrize(
    ("choice", "text", "hint", "state"),
    [
        (
            Choice("", tried=[("idmap", "no")], hint="do this"),
            "cannot be mounted here: idmapped SquashFS mounts: no",
            "do this",
            BAD,
        ),
        (
            Choice("fuse", True, [("idmap", "no")]),
            "are mounted by squashfuse (idmapped SquashFS mounts: no)",
            "dm_mod",
            WARN,
        ),
    ],
)
def test_how_the_kernel_mounts_images(machine: Machine, choice: Choice, text: str, hint: str, state: str) -> None:
    imagemounts.note(choice, machine.config.node.state)
    only(machine, "image mounts", text, hint, state)


@pytest.mark.parametrize("way", ["idmap", "devicemapper"])
def test_the_fast_ways_are_well(machine: Machine, way: str) -> None:
    imagemounts.note(Choice(way), machine.config.node.state)
    assert not [finding for finding in doctor.examine(machine) if finding.state not in (OK, SKIPPED)]


def test_how_images_are_mounted_is_tried_where_no_daemon_was(machine: Machine) -> None:
    imagemounts.forget(machine.config.node.state)
    (found,) = kernel.image_mounts(machine)
    if os.geteuid() == 0:
        assert found.text.startswith("images of the site's store")
    else:
        assert (found.state, found.hint) == (SKIPPED, "start it, or look again as root")


def test_a_file_system_that_the_kernel_does_not_know(machine: Machine) -> None:
    (machine.proc / "filesystems").write_text("nodev\toverlay\n")
    only(machine, "kernel", "squashfs", "modprobe squashfs", WARN)


@pytest.mark.parametrize(
    ("setting", "value", "hint"),
    [
        ("user/max_user_namespaces", "0", "user.max_user_namespaces=15000"),
        ("kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "kernel.apparmor_restrict_unprivileged_userns=0"),
    ],
)
def test_user_namespaces_are_off(machine: Machine, setting: str, value: str, hint: str) -> None:
    (machine.proc / "sys" / setting).write_text(f"{value}\n")
    only(machine, "user namespaces", "users may not make them", hint)


def test_user_namespaces_that_pioletd_makes(machine: Machine) -> None:
    (machine.proc / "sys/kernel/unprivileged_userns_clone").write_text("0\n")
    imagemounts.note(Choice("idmap", True, helped=True), machine.config.node.state)
    (found,) = kernel.user_namespaces(machine)
    assert found.state == OK and "pioletd makes those of containers" in found.text


def test_user_namespaces_are_refused(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "_CLONE_NEWUSER", 1 << 62)  # a flag that no kernel takes
    only(machine, "user namespaces", "unshare(2) is refused", "kernel's log")


@pytest.mark.parametrize(
    ("name", "text", "state"),
    [
        ("entry", "images whose entrypoint runs", BAD),
        ("task", "vet steps run it", BAD),
        ("skopeo", "no image can be pulled", BAD),
        ("mksquashfs", "no image can be converted", BAD),
        ("squashfuse", ".sqsh files", WARN),
    ],
)
def test_a_program_is_missing(machine: Machine, tmp_path: Path, name: str, text: str, state: str) -> None:
    (tmp_path / "bin" / name).unlink()
    only(machine, "programs", text, "install", state)


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


@pytest.mark.parametrize(("name", "state"), [("loop-control", BAD), ("fuse", WARN)])
def test_a_device_is_missing(machine: Machine, name: str, state: str) -> None:
    (machine.dev / name).unlink()
    only(machine, "devices", f"{name} is not there", "modprobe", state)


def test_a_device_that_is_not_for_users(machine: Machine) -> None:
    (machine.dev / "fuse").chmod(0o600)
    only(machine, "devices", "fuse is not for users", "chmod 0666", WARN)


def test_the_store(machine: Machine, tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.chmod(0o777)
    only(machine, "store", "may be written by others", "chmod 0711")
    store.chmod(0o555)
    only(machine, "store", "cannot write there, though it is its owner", "chmod 0711")
    store.chmod(0o710)
    only(machine, "store", "may not be entered by users", "chmod 0711", WARN)
    images = dataclasses.replace(machine.config.images, account="nobody")
    other = dataclasses.replace(machine, config=dataclasses.replace(machine.config, images=images))
    store.chmod(0o711)
    only(other, "store", f"belongs to user {os.geteuid()}, and nobody is user 65534 here", "one number on all machines")
    store.rmdir()
    only(machine, "store", "is not there", "install -d")
    store.touch()
    only(machine, "store", "is no directory", "move it away")


def test_a_store_that_does_not_answer(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(findings, "LOOK_S", 0.2)
    monkeypatch.setattr(store, "_seen", lambda _: time.sleep(60))
    only(machine, "store", "gives no answer within 0.2 s: steps with images of it fail", "server answers")


def test_a_login_node_has_no_daemons(machine: Machine, tmp_path: Path) -> None:
    for path in tmp_path.glob("*.sock"):
        path.unlink()
    login = dataclasses.replace(machine, here=lambda _: False)
    assert not bad(login)
    skipped = [finding for finding in doctor.examine(login) if finding.state == SKIPPED]
    assert {finding.check for finding in skipped} == {"kernel", "daemons", "store"}


def test_a_login_node_makes_no_containers(machine: Machine) -> None:
    """Its kernel and its devices are nobody's business; its image service is."""
    (machine.dev / "loop-control").unlink()
    (machine.proc / "sys/user/max_user_namespaces").write_text("0\n")
    login = dataclasses.replace(machine, release="4.18.0", here=lambda name: name == "piolet-imaged")
    assert not bad(login)
    answered = [finding.text for finding in doctor.examine(login) if finding.check == "daemons" and finding.state == OK]
    assert len(answered) == 1 and "piolet-imaged answers" in answered[0]


def test_which_daemons_belong_on_a_machine(tmp_path: Path) -> None:
    """Each where it is installed; `--role` says which must be."""
    program(tmp_path / "piolet-imaged", "")
    here = {
        role: [name for name in ("pioletd", "piolet-imaged") if cli_doctor._is_here(role, str(tmp_path / name))]
        for role in (None, "login", "node")
    }
    assert here == {None: ["piolet-imaged"], "login": ["piolet-imaged"], "node": ["pioletd", "piolet-imaged"]}
    assert cli_doctor._is_here("login", str(tmp_path / "elsewhere/piolet-imaged"))


def test_what_cannot_be_looked_at_is_said(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "proc/filesystems").unlink()
    only(machine, "kernel", "could not be looked at: No such file or directory", "look again", WARN)


def test_processes_that_outlive_a_job(machine: Machine, tmp_path: Path) -> None:
    program(tmp_path / "bin/scontrol", "echo 'ProctrackType           = proctrack/linuxproc'")
    only(machine, "process tracking", "proctrack/linuxproc: processes that leave", "TaskPlugin=task/cgroup", WARN)
    login = dataclasses.replace(machine, here=lambda name: name != "pioletd")
    assert "process tracking" not in {finding.check for finding in doctor.examine(login)}


def test_a_task_prolog_that_containers_do_not_have(machine: Machine, tmp_path: Path) -> None:
    program(tmp_path / "bin/scontrol", f"echo 'TaskPlugin = x'; echo 'TaskProlog = {tmp_path}/prologs/one'")
    only(machine, "task prolog", f"TaskProlog {tmp_path}/prologs/one is not in the containers", "to mounts in")
    (tmp_path / "prologs").mkdir()
    (tmp_path / "prologs/one").touch()
    for source, good in (("prologs", True), ("prologs/one", True), ("elsewhere", False)):
        mount = f"{tmp_path}/{source}" if good else f"{tmp_path}/{source}:{tmp_path}/prologs:ro"
        environment = dataclasses.replace(machine.config.environment, mounts=(mount,))
        own = dataclasses.replace(machine, config=dataclasses.replace(machine.config, environment=environment))
        found = {finding.check: finding.state for finding in doctor.examine(own)}
        # What is not on the node is in no container.
        assert (found["task prolog"], found.get("site mounts")) == ((OK, None) if good else (BAD, WARN))
    program(tmp_path / "bin/scontrol", "exit 1")
    only(machine, "task prolog", "scontrol show config does not work", "slurmctld", state=WARN)


@pytest.mark.parametrize(
    ("standing", "reasons", "state", "said"),
    [
        (("namespaces", "landlock", "seccomp"), [], OK, "images are read in namespaces, landlock, seccomp"),
        (("landlock", "seccomp"), ["user namespaces: no"], WARN, "not there: user namespaces: no"),
        (("namespaces",), ["Landlock: not in use"], WARN, "not there: Landlock: not in use"),
        (("seccomp",), ["user namespaces: no", "Landlock: not in use"], BAD, "there is no cage to read them in"),
        ((), ["user namespaces: no"], BAD, "there is no cage to read them in"),
    ],
)
def test_cages(
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    standing: tuple[str, ...],
    reasons: list[str],
    state: str,
    said: str,
) -> None:
    monkeypatch.setattr("piolet.doctor.store.probe", lambda _: (standing, reasons))
    (found,) = [finding for finding in doctor.examine(machine) if finding.check == "cage"]
    assert found.state == state and said in found.text
