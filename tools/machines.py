"""Machines that systemd booted, on one machine: what an administrator has, for the tests of the packages.

Each is a root of Debian's packages below an overlay of its own, with processes, mounts, host name, control groups and
network of its own; a bridge joins them, and a directory stands for the file system that they share. Their kernel is
this machine's. What runs on them ends with their process 1, and that one with the process that booted it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.cluster import cgroup, image
from tools.cluster.errors import ClusterError
from tools.cluster.processes import FIXED_PATH, INTO_GROUP
from tools.cluster.state import locked, write_atomically

PACKAGES = (
    "systemd", "systemd-sysv", "dbus", "iproute2", "procps", "passwd", "util-linux", "python3",
    "slurmctld", "slurmd", "slurm-client", "slurm-wlm-basic-plugins", "munge",
    "rpm", "skopeo", "squashfs-tools", "squashfuse", "fuse3", "zstd", "docker-registry",
)  # fmt: skip
# What Debian starts at boot, and an administrator starts here by hand.
ASLEEP = ("slurmctld", "slurmd", "docker-registry")
ROOT_S, BOOT_S, RUN_S = 900, 60, 120
NETWORK = "10.77.0"
LOOPS = 64

# As process 1 of its own: a root with the devices of a container, and nothing of this machine's but its kernel.
BOOT = """
set -e
root=$1 shared=$2 name=$3 layers=$4
mount -t overlay -o "$layers" overlay "$root"
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755 dev "$root/dev"
for device in null zero full random urandom tty; do
	: >"$root/dev/$device"
	mount --bind "/dev/$device" "$root/dev/$device"
done
mknod -m 666 "$root/dev/fuse" c 10 229
mknod -m 660 "$root/dev/loop-control" c 10 237
number=0
while [ $number -lt $LOOPS ]; do
	mknod -m 660 "$root/dev/loop$number" b 7 $number
	number=$((number + 1))
done
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=666,mode=620 devpts "$root/dev/pts"
mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
mount -t tmpfs -o mode=755 run "$root/run"
mount -t tmpfs -o mode=1777 tmp "$root/tmp"
mkdir -p "$root/shared"
mount --bind "$shared" "$root/shared"
echo "$name" >"$root/etc/hostname"
cd "$root"
pivot_root . mnt
umount -l mnt
exec env -i container=piolet PATH="$PATH" /lib/systemd/systemd --log-target=console --show-status=0
"""


@dataclass(frozen=True)
class Done:
    """What a command on a machine came to; `out` is all that it printed."""

    status: int
    out: str


class Machine:
    """A machine that runs. `pid` is its process 1 as seen from outside."""

    def __init__(self, name: str, address: str, pid: int) -> None:
        self.name, self.address, self.pid = name, address, pid

    def run(self, *command: str, user: str = "root", timeout_s: float = RUN_S) -> Done:
        """Run a command as a user who has just logged in. Raises ClusterError where it takes too long."""
        become = ["runuser", "-u", user, "--"] if user != "root" else []
        home = "/root" if user == "root" else f"/shared/home/{user}"
        environment = [
            "env",
            "-i",
            f"--chdir={home}",
            f"PATH={FIXED_PATH}",
            "LANG=C.UTF-8",
            f"HOME={home}",
            f"USER={user}",
        ]
        words = [*enter(self.pid, "--all"), *environment, *become, *command]
        try:
            done = subprocess.run(
                words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                errors="replace", timeout=timeout_s, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as late:
            said = (late.output or b"").decode("utf-8", "replace")
            raise ClusterError(f"{self.name}: {' '.join(command)} took more than {timeout_s:g} s: {said}") from None
        return Done(done.returncode, done.stdout)

    def good(self, *command: str, user: str = "root", timeout_s: float = RUN_S) -> str:
        """Run a command that must succeed; return what it printed. Raises ClusterError where it does not."""
        done = self.run(*command, user=user, timeout_s=timeout_s)
        if done.status:
            raise ClusterError(f"{self.name}: {' '.join(command)} ended with {done.status}:\n{done.out}")
        return done.out

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file of the machine's, and the directories that it is in."""
        script = 'mkdir -p "$(dirname "$1")" && printf %s "$3" >"$1" && chmod "$2" "$1"'
        self.good("sh", "-c", script, "sh", path, f"{mode:o}", text)


def enter(pid: int, *namespaces: str) -> list[str]:
    return ["nsenter", f"--target={pid}", *namespaces]


def base(cache: Path) -> Path:
    """Return the root that all machines begin with, made once, of this machine's own release of Debian."""
    source = image.find_source()
    dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=False).stdout
    hook = f'chroot "$1" systemctl --quiet disable {" ".join(ASLEEP)}'
    recipe = json.dumps([source.suite, source.mirror, PACKAGES, hook])
    place = cache / f"machine-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    log = cache / "machine.log"
    with locked(cache / "machine.lock", "the root of the machines", ROOT_S):
        if (place / "made").exists():
            return place / "root"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True, mode=0o755)
        command = ["mmdebstrap", "--variant=minbase", "--mode=root", f"--include={','.join(PACKAGES)}"]
        command += [f"--aptopt={option}" for option in image.apt_options(dump)]
        command += ["--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*"]
        command += [f"--customize-hook={hook}", source.suite, str(place / "root"), source.mirror]
        with log.open("wb") as output:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, timeout=ROOT_S, check=False
            )
        if done.returncode:
            raise ClusterError("mmdebstrap of a machine's root failed", log=log)
        write_atomically(place / "made", recipe)
        return place / "root"


@contextlib.contextmanager
def booted(names: Sequence[str], cache: Path, place: Path) -> Iterator[list[Machine]]:
    """Boot machines and yield them, at the addresses NETWORK.1 and so on; end them and remove `place` afterwards."""
    lower = base(cache)
    shutil.rmtree(place, ignore_errors=True)
    (place / "shared").mkdir(parents=True, mode=0o755)
    place.chmod(0o755)
    group = cgroup.create(f"machines-{hashlib.sha256(str(place).encode()).hexdigest()[:8]}", place / "cgroup")
    cgroup.kill(group)  # of a run that was killed
    machines: list[Machine] = []
    try:
        for number, name in enumerate(names, 1):
            machine = _boot(name, f"{NETWORK}.{number}", lower, place, group)
            _connect(machine, machines)
            machines.append(machine)
        for machine in machines:
            _wait(machine, place)
        yield machines
    finally:
        cgroup.kill(group)
        cgroup.remove(group, place / "cgroup")
        shutil.rmtree(place, ignore_errors=True)


def _boot(name: str, address: str, lower: Path, place: Path, group: Path) -> Machine:
    own = place / name
    for part in ("root", "upper", "work"):
        (own / part).mkdir(parents=True, mode=0o755)
    (group / name).mkdir(exist_ok=True)
    layers = f"lowerdir={lower},upperdir={own / 'upper'},workdir={own / 'work'}"
    inside = [
        "unshare",
        "--mount",
        "--pid",
        "--uts",
        "--ipc",
        "--cgroup",
        "--net",
        "--fork",
        "--propagation",
        "private",
    ]
    command = ["setpriv", "--pdeathsig", "KILL", *inside, "--kill-child", "sh", "-c", BOOT, "sh"]
    with (place / f"{name}.log").open("wb") as log:
        parent = subprocess.Popen(
            ["sh", "-c", INTO_GROUP, str(group / name / "cgroup.procs"), *command, str(own / "root"),
             str(place / "shared"), name, layers],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/",
            env={"PATH": FIXED_PATH, "LOOPS": str(LOOPS)},
        )  # fmt: skip
    return Machine(name, address, _child(parent, place / f"{name}.log"))


def _child(parent: subprocess.Popen[bytes], log: Path) -> int:
    """Return the process that the parent, which becomes unshare, forks into the new namespaces."""
    end = time.monotonic() + BOOT_S
    while time.monotonic() < end:
        found = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text("ascii").split()
        if found:
            return int(found[0])
        if parent.poll() is not None:
            break
        time.sleep(0.01)
    raise ClusterError("a machine did not begin to boot", log=log)


def _connect(machine: Machine, others: Sequence[Machine]) -> None:
    """Give a machine its address; the bridge to the others lies in the network of the first."""
    hub = others[0] if others else machine

    def ip(where: Machine, words: str) -> None:
        subprocess.run([*enter(where.pid, "--net"), "ip", *words.split()], check=True, capture_output=True)

    ip(machine, "link set lo up")
    if not others:
        ip(hub, "link add site type bridge")
        ip(hub, f"address add {hub.address}/24 dev site")
        ip(hub, "link set site up")
        return
    ip(hub, f"link add {machine.name} type veth peer name site netns {machine.pid}")
    ip(hub, f"link set {machine.name} master site up")
    ip(machine, f"address add {machine.address}/24 dev site")
    ip(machine, "link set site up")


def _wait(machine: Machine, place: Path) -> None:
    """Wait until systemd says that it is up; units that failed are said."""
    end = time.monotonic() + BOOT_S
    while time.monotonic() < end:
        state = machine.run("systemctl", "is-system-running", "--wait", timeout_s=BOOT_S).out.strip()
        if state == "running":
            return
        if state == "degraded":
            failed = machine.run("systemctl", "--failed", "--no-legend", "--plain").out
            raise ClusterError(f"{machine.name} came up without some of its units:\n{failed}")
        time.sleep(0.05)
    raise ClusterError(f"{machine.name} was not up after {BOOT_S} s", log=place / f"{machine.name}.log")
