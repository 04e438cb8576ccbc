"""The cage: a hostile program in the place of skopeo, mksquashfs or zstd reaches nothing; without the cage, it does."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from piolet.images import seccomp
from piolet.system import pretendroot

from tests.images.conftest import ALICE, ASK, BOB, PYTHON, SERVICE, Site, become, environment, finish, needs_root
from tests.images.processes import pids
from tests.support import oci
from tests.support.registry import Registry, auth_file
from tests.support.waiting import wait_until

HOSTILE = Path(__file__).with_name("hostile.py")
DENY = Path(__file__).parents[1] / "simulators/deny_userns.py"
WALLS = [("namespaces", "landlock"), ("namespaces",), ("landlock",)]
PROGRAMS = ["skopeo", "mksquashfs", "zstd"]


@dataclass
class Prey:
    """A site with things worth having in it, all of one account's, and a program that wants them."""

    site: Site
    uid: int
    store: Path
    program: Path
    targets: dict[str, Any]
    more: dict[str, str]

    def aim(self, service: int, name: str) -> Path:
        """Write the hostile program as `name`; return its path."""
        self.program.mkdir(exist_ok=True)
        text = HOSTILE.read_text().replace(
            'json.loads("{}")', f"json.loads({json.dumps(self.targets | {'service': service})!r})"
        )
        path = self.program / name
        path.write_text(f"#!{os.path.realpath(sys.executable)} -I\n{text}")
        path.chmod(0o755)
        return path

    def report(self) -> dict[str, Any]:
        """Wait for the program's report."""
        found: list[Path] = []

        def there() -> bool:
            found[:] = list((self.store / "tmp").glob("*/report"))
            return bool(found)

        wait_until(there, what="the hostile program's report")
        report: dict[str, Any] = json.loads(found[0].read_text())
        return report

    def everything(self) -> dict[str, tuple[int, int, int]]:
        """Return mode, size and time of all that a program should not touch."""
        seen = {}
        for folder in [*self.targets["folders"], str(self.site.room)]:
            if folder == "/tmp":
                continue
            for path in [Path(folder), *Path(folder).rglob("*")]:
                if path.name != "service.log" and "leases" not in path.parts and path.parent.name != "tmp":
                    with contextlib.suppress(FileNotFoundError):
                        found = path.lstat()
                        if "tmp" not in path.relative_to(self.site.room).parts or "another" in path.parts:
                            seen[str(path)] = (found.st_mode, found.st_size, 0 if path.is_dir() else found.st_mtime_ns)
        return seen


def treasure(path: Path, uid: int, mode: int = 0o600) -> str:
    """Make a file that belongs to `uid`; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    access = {"version": 1, "public": False, "users": [uid], "first": uid}  # else the store clears it away
    path.write_text(json.dumps(access) if path.suffix == ".access" else "treasure")
    path.chmod(mode)
    os.chown(path, uid, uid)
    return str(path)


@pytest.fixture
def listener() -> Iterator[str]:
    """An abstract socket that somebody of this machine listens at."""
    name = f"piolet-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind("\0" + name)
        listening.listen(1000)
        yield name


@pytest.fixture
def prey(room: Path, registry: Registry, listener: str) -> Iterator[Prey]:
    """The image service and its store."""
    site = Site(room)
    site.start()  # makes the store
    files = [
        treasure(site.store / f"sha256-{'a' * 64}.sqsh", SERVICE),
        treasure(site.store / f"sha256-{'a' * 64}.access", SERVICE, 0o644),
        treasure(site.store / f"refs/{ALICE + 7}/x", SERVICE),
        treasure(site.store / "tmp/another/blobs", SERVICE),
        treasure(room / "var/secret", SERVICE),
        treasure(room / "etc/service.toml", SERVICE),
    ]
    for path in (site.store / "tmp/another", site.store / f"refs/{ALICE + 7}", room / "etc"):
        os.chown(path, SERVICE, SERVICE)
    folders = [str(site.store), str(site.store / "refs"), str(site.store / f"refs/{ALICE + 7}")]
    folders += [str(site.store / "tmp/another"), str(room / "var"), str(room / "etc")]
    targets = {"files": files, "folders": folders, "socket": str(room / "var/s.sock"), "abstract": listener}
    yield Prey(site, SERVICE, site.store, room / "bin", targets, {})
    site.stop()


@pytest.fixture
def own_prey(room: Path, registry: Registry, listener: str) -> Iterator[Prey]:
    """A user's own store, in a home."""
    site = Site(room)
    site.start()  # whose socket is a target
    home = room / "home"
    files = [
        treasure(home / ".ssh/id", ALICE),
        treasure(home / ".config/containers/auth.json", ALICE),
        treasure(home / ".profile", ALICE),
        treasure(home / f"images/sha256-{'a' * 64}.sqsh", ALICE),
        treasure(home / f"images/sha256-{'a' * 64}.access", ALICE),
        treasure(home / "images/tmp/another/blobs", ALICE),
    ]
    subprocess.run(["chown", "-R", f"{ALICE}:{ALICE}", home], check=True)
    folders = [str(home), str(home / ".ssh"), str(home / "images"), str(home / "images/tmp/another")]
    folders += [str(home / ".config/containers")]
    targets = {"files": files, "folders": folders, "socket": str(room / "var/s.sock"), "abstract": listener}
    more = {"EDF_IMAGESTORE": str(home / "images"), "HOME": str(home)}
    assert site.piolet(ALICE, "image", "list", **more).returncode == 0  # makes the store
    yield Prey(site, ALICE, home / "images", room / "bin", targets, more)
    site.stop()


def attack(prey: Prey, program: str, registry: Registry, walls: tuple[str, ...] | None) -> dict[str, Any]:
    """Have the service, or the user's own process, run the hostile program; return what that reports."""
    site = prey.site
    site.stop()
    site.walls = walls
    path = str(prey.program)
    if program != "zstd":
        site.settings[program] = f"{path}/{program}"
    else:
        site.before = ("/usr/bin/env", f"PATH={path}:{os.environ['PATH']}")
        prey.more["PATH"] = f"{path}:{os.environ['PATH']}"
    site.start()
    assert site.process is not None
    prey.aim(site.process.pid, program)
    oci.build(site.room / "i", [oci.pack([oci.file("a")], "zstd")])
    reference = registry.push(site.room / "i", "app:1")
    before = prey.everything()
    assert set(prey.targets["files"]) <= set(before), "what there is to be had"
    client = site.begin(ALICE, reference, **prey.more)
    try:
        report = prey.report()
    finally:
        client.kill()
        said, _ = client.communicate()
        print(said.decode())
    after = prey.everything()
    assert after == before, set(after.items()) ^ set(before.items())
    return report


@needs_root()
@pytest.mark.parametrize("walls", WALLS, ids="+".join)
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_hostile_program_in_the_service(prey: Prey, registry: Registry, program: str, walls: tuple[str, ...]) -> None:
    report = attack(prey, program, registry, walls)
    assert report["reached"] == [] and len(report["refused"]) > 80, report
    assert report["uid"] == SERVICE
    known = ("pipe:", "/dev/null", f"{prey.store}/tmp/", "/memfd:piolet-credentials", "/proc/")
    assert all(target.startswith(known) for target in report["opened"].values()), report["opened"]
    wait_until(lambda: prey.site.leftovers() in ([], ["another"]), what="the end of the work")


@needs_root()
@pytest.mark.parametrize("walls", WALLS, ids="+".join)
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_hostile_program_in_a_users_own_process(
    own_prey: Prey, registry: Registry, program: str, walls: tuple[str, ...]
) -> None:
    report = attack(own_prey, program, registry, walls)
    assert report["reached"] == [] and len(report["refused"]) > 80, report
    assert report["uid"] == ALICE


@needs_root()
@pytest.mark.parametrize("which", ["prey", "own_prey"])
def test_without_a_cage_it_reaches_all(which: str, request: pytest.FixtureRequest) -> None:
    """Else the tests above would prove nothing."""
    prey: Prey = request.getfixturevalue(which)
    parent = subprocess.Popen([*become(prey.uid), "sleep", "100"])
    try:
        program = prey.aim(parent.pid, "mksquashfs")
        scratch = prey.store / "tmp/mine"
        scratch.mkdir()
        os.chown(scratch, prey.uid, prey.uid)
        # The same account starts it, as the parent that it reaches for.
        starter = f"import subprocess; subprocess.run([{str(program)!r}, '--scratch', {str(scratch)!r}], check=True)"
        subprocess.run([*become(prey.uid), PYTHON, "-c", starter], env=environment(), check=True)
        report = json.loads((scratch / "report").read_text())
    finally:
        parent.kill()
        parent.wait()
    assert report["refused"] == {} and len(report["reached"]) > 80


@needs_root()
def test_no_cage_no_image(site: Site, registry: Registry, image: Path) -> None:
    reference = registry.push(image, "app:1")
    oci.archive(image, site.room / "a.tar")
    site.stop()
    site.walls = ()
    site.start()
    refused = site.ask(ALICE, reference)
    assert "gives no cage to read images in" in refused["error"] and "piolet doctor" in refused["hint"], refused
    brought = site.piolet(ALICE, "image", "import", str(site.room / "a.tar"))
    assert brought.returncode == 1 and "gives no cage" in brought.stderr
    assert site.leftovers() == [] and site.images() == []


@needs_root()
def test_where_users_may_make_no_namespaces_landlock_does(site: Site, registry: Registry, image: Path) -> None:
    reference = registry.push(image, "app:1")
    site.stop()
    site.before = (PYTHON, str(copied(DENY, site.room)), "/usr/bin/env")
    site.start()
    assert "error" not in site.ask(ALICE, reference)
    site.stop()
    site.walls = ("namespaces",)
    site.start()
    refused = site.ask(ALICE, reference, "refresh")
    assert "user namespaces: new namespaces: No space left on device" in refused["error"], refused


@needs_root()
@pytest.mark.parametrize("walls", [("namespaces",), ("namespaces", "landlock")], ids="+".join)
def test_where_parts_of_proc_are_covered(prey: Prey, registry: Registry, walls: tuple[str, ...]) -> None:
    """As in containers, and under systemd's ProtectKernelTunables: the kernel gives no new /proc there."""
    cover = 'mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec "$@"'
    prey.site.before = ("unshare", "--mount", "sh", "-c", cover, "sh")
    report = attack(prey, "mksquashfs", registry, walls)
    assert prey.site.process is not None
    # The old /proc says, as ever, which numbers of descriptors a process of the same account has; not what they are.
    known = [f"list fd of {prey.site.process.pid}"] if "landlock" not in walls else []
    assert set(report["reached"]) <= set(known) and len(report["refused"]) > 80, report


@needs_root()
@pytest.mark.parametrize("walls", WALLS, ids="+".join)
def test_what_a_program_leaves_running(site: Site, registry: Registry, image: Path, walls: tuple[str, ...]) -> None:
    reference = registry.push(image, "app:1")
    script = site.room / "mksquashfs"
    script.write_text('#!/bin/sh\nsetsid sleep 7654 &\nnohup sleep 7654 &\n/usr/bin/mksquashfs "$@"\n')
    script.chmod(0o755)
    site.stop()
    site.walls = walls
    site.settings["mksquashfs"] = str(script)
    site.start()
    assert "error" not in site.ask(ALICE, reference)
    wait_until(lambda: not pids("sleep 7654"), what="the end of what was left")


@needs_root()
@pytest.mark.parametrize("walls", WALLS, ids="+".join)
def test_real_programs_work_in_every_cage(room: Path, guarded: Registry, image: Path, walls: tuple[str, ...]) -> None:
    """With credentials, a zstd layer, and both kinds of archives."""
    site = Site(room, walls=walls)
    site.start()
    oci.build(room / "z", [oci.pack([oci.file("a", b"content")], "zstd")])
    reference = guarded.push(room / "z", "app:1", "alice")
    auth = auth_file(room / "auth.json", guarded.address, "alice", "secret-a")
    os.chown(auth, ALICE, ALICE)
    try:
        answer = site.ask(ALICE, reference, REGISTRY_AUTH_FILE=str(auth))
        assert "error" not in answer, answer
        assert "error" in site.ask(BOB, reference)
        for kind in ("oci-archive", "docker-archive"):
            oci.archive(image, room / f"{kind}.tar", kind)
            made = site.piolet(ALICE, "image", "import", str(room / f"{kind}.tar"))
            assert made.returncode == 0, made.stderr
        own = room / "home"
        own.mkdir()
        os.chown(own, ALICE, ALICE)
        more = {"EDF_IMAGESTORE": str(own / "images"), "HOME": str(own), "REGISTRY_AUTH_FILE": str(auth)}
        assert "error" not in site.ask(ALICE, reference, **more)
    finally:
        site.stop()


@pytest.mark.parametrize("header", ["asm/unistd_64.h", "asm-generic/unistd.h"])
def test_the_numbers_of_system_calls(header: str) -> None:
    """Those that the machine's headers know; the generic ones are aarch64's."""
    found = subprocess.run(
        ["cc", "-E", "-dM", "-include", header, "-x", "c", "/dev/null"], capture_output=True, text=True
    )
    if found.returncode or (header.startswith("asm/") and os.uname().machine != "x86_64"):
        pytest.skip("no such header here")
    column = 0 if header.startswith("asm/") else 1
    numbers = {name: int(value) for name, value in re.findall(r"#define __NR(?:3264)?_(\w+) (\d+)\n", found.stdout)}
    ours = {**seccomp._DENIED, **seccomp._DENIED_TO_PROGRAMS, **pretendroot.CALLS}
    ours |= {"socket": seccomp._SOCKET, "clone": seccomp._CLONE, "clone3": seccomp._CLONE3, "kill": seccomp._KILL_CALL}
    ours |= {"fchmod": seccomp._FCHMOD, "prlimit64": seccomp._PRLIMIT, "prctl": seccomp._PRCTL}
    ours |= {"tgkill": seccomp._TGKILL}
    wrong = {name: pair for name, pair in ours.items() if name in numbers and pair[column] not in (numbers[name], None)}
    assert not wrong and len(ours.keys() & numbers.keys()) > 60


@needs_root()
@pytest.mark.parametrize("walls", WALLS, ids="+".join)
def test_root_has_no_capabilities_in_it(registry: Registry, image: Path, room: Path, walls: tuple[str, ...]) -> None:
    """In a store of root's own: neither the worker nor a program, though both are root."""
    site = Site(room, walls=walls)
    script = room / "mksquashfs"
    script.write_text(
        f"#!{os.path.realpath(sys.executable)} -I\nimport ctypes, struct, sys\n"
        "libc, sets = ctypes.CDLL(None), ctypes.create_string_buffer(24)\n"
        "libc.capget(struct.pack('=Ii', 0x20080522, 0), sets)\n"
        "bounding = sum(libc.prctl(23, number, 0, 0, 0) == 1 for number in range(64))\n"
        "print('sets', sum(sets.raw), 'bounding', bounding, 'no new', libc.prctl(39, 0, 0, 0, 0), file=sys.stderr)\n"
        "sys.exit(1)\n"
    )
    script.chmod(0o755)
    site.write_config()
    reference = registry.push(image, "app:1")
    own = {"EDF_IMAGESTORE": str(room / "own"), "HOME": str(room)}
    assert "error" not in finish(_as_root(site, reference, own))
    shutil.rmtree(room / "own")
    site.settings["mksquashfs"] = str(script)
    site.write_config()
    said = finish(_as_root(site, reference, own))["error"]
    assert "sets 0 bounding 0 no new 1" in said, said


def _as_root(site: Site, reference: str, more: dict[str, str]) -> subprocess.Popen[bytes]:
    request = json.dumps({"reference": reference, "mode": "pull"})
    command = [*site.python(ASK), str(site.config), request]
    return subprocess.Popen(command, env=environment() | more, stdout=subprocess.PIPE, cwd="/")


def copied(path: Path, room: Path) -> Path:
    shutil.copy(path, room / path.name)
    (room / path.name).chmod(0o755)
    return room / path.name


@needs_root()
@pytest.mark.parametrize("left", [True, False], ids=["a link", "a second name"])
def test_what_a_program_leaves_in_the_images_place(site: Site, registry: Registry, image: Path, left: bool) -> None:
    """The service publishes a plain file of its own and nothing else, whatever lies there."""
    reference = registry.push(image, "app:1")
    script = site.room / "mksquashfs"
    trick = 'mv "$2" "$2.x"; ln -s "$2.x" "$2"' if left else 'ln "$2" "$2.x"'
    script.write_text(f'#!/bin/sh\n/usr/bin/mksquashfs "$@" || exit\n{trick}\n')
    script.chmod(0o755)
    site.stop()
    site.settings["mksquashfs"] = str(script)
    site.start()
    refused = site.ask(ALICE, reference)
    assert "error" in refused and site.images() == [] and site.leftovers() == [], refused


@needs_root()
def test_a_port_that_nobody_may_use_without_need(site: Site, registry: Registry, image: Path) -> None:
    """A conversion has no network: a mksquashfs that calls home gets no socket at all."""
    reference = registry.push(image, "app:1")
    script = site.room / "mksquashfs"
    script.write_text(
        f"#!{os.path.realpath(sys.executable)} -I\nimport socket, sys\n"
        f"for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):\n"
        f"    try: socket.socket(family); print('a socket', family, file=sys.stderr)\n"
        f"    except OSError as error: print(error.strerror, file=sys.stderr)\nsys.exit(1)\n"
    )
    script.chmod(0o755)
    site.stop()
    site.settings["mksquashfs"] = str(script)
    site.start()
    refused = site.ask(ALICE, reference)
    assert "; ".join(["Address family not supported by protocol"] * 3) in refused["error"], refused
