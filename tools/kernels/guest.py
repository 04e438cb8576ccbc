"""Boots a kernel in QEMU with a root that is shared: read-only, by 9p, below an overlay on a disk of the guest's own.

The root is this machine's: so the guest has this checkout, its build/venv and every installed package, at their paths,
and can change none of them. Or it is one of another architecture, made by tools/arm64. A script runs in the guest, with
a directory for what it has to say; then it is over. Emulated, since a machine in a cloud may offer KVM and not have
it: some ten times slower than this machine.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tools.cluster.errors import ClusterError
from tools.kernels.source import Unpacked

HERE = Path(__file__).resolve().parent
PROGRAMS = ("depmod", "modprobe", "cpio", "mkfs.ext4")
MEMORY, CPUS, DISK = "4G", 2, 16 << 30
# What it takes to get at the root; the others are loaded from there.
MODULES = ("crc32c_generic", "crc32c", "libcrc32c", "virtio_pci", "virtio_blk", "9pnet_virtio", "9p", "overlay", "ext4")
MARK = "piolet-guest:"


@dataclass(frozen=True)
class Machine:
    """What is emulated, and the root that it has; `busybox` is below that, linked statically."""

    program: str
    hardware: tuple[str, ...]
    console: str
    root: Path = Path("/")

    @property
    def busybox(self) -> Path:
        """Return the busybox that its first process is."""
        return self.root / "bin/busybox"


HERE_LIKE = Machine("qemu-system-x86_64", ("-cpu", "max"), "ttyS0")


@dataclass(frozen=True)
class Ended:
    """How a guest ended. `status` is its script's, None where it came to none; `up_s` from power on to the script."""

    status: int | None
    up_s: float
    seconds: float


def missing(machine: Machine = HERE_LIKE) -> list[str]:
    """Return what this machine lacks to boot guests like `machine`."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    lacking = [name for name in (machine.program, *PROGRAMS) if shutil.which(name, path=path) is None]
    return lacking + ([] if machine.busybox.exists() else ["busybox (busybox-static)"])


def boot(
    kernel: Unpacked,
    work: Path,
    script: str,
    limit_s: float,
    machine: Machine = HERE_LIKE,
    *,
    counted: bool = False,
    cpus: int = CPUS,
) -> Ended:
    """Boot the kernel, run `script` with bash as root, and return how it ended.

    kernel   its modules are below the machine's root
    work     the guest's directory, emptied but for what can be used again: out/ is /mnt/out there, console its log
    counted  the guest's clock counts its instructions, 4 ns each, and goes by this machine's while it sleeps: what else
             this machine does is in no figure of what it computes. One thread emulates all processors then.
    cpus     its processors: on a busy machine two wait for each other, and take half as much again of this one's

    Raises ClusterError: QEMU does not start, the guest is not up in time, or its script is not done.
    """
    out = work / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    shutil.copy(HERE / "guest.sh", out / "guest.sh")
    (out / "job.sh").write_text(script, "utf-8")
    console = work / "console"
    began = time.monotonic()
    with console.open("wb") as log, tempfile.TemporaryDirectory(dir=work) as room:
        disk = Path(room) / "disk"
        _run(["truncate", "-s", str(DISK), str(disk)])
        _run(["mkfs.ext4", "-q", "-E", "lazy_itable_init=1,lazy_journal_init=1", str(disk)])
        command = _command(machine, kernel, _initrd(machine, kernel, work), disk, out, counted, cpus)
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=lambda: os.nice(5)
        )
        try:
            process.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise ClusterError(f"the guest was not done after {limit_s:.0f} s", log=console) from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
            process.wait()
    text = console.read_text("utf-8", "replace")
    up = re.search(rf"{MARK} up after ([0-9.]+) s", text)
    if up is None:
        raise ClusterError(f"the kernel {kernel.release} did not come up", log=console)
    status = (out / "status").read_text("ascii").strip() if (out / "status").exists() else ""
    return Ended(int(status) if status else None, float(up[1]), time.monotonic() - began)


def _command(
    machine: Machine, kernel: Unpacked, initrd: Path, disk: Path, out: Path, counted: bool, cpus: int
) -> list[str]:
    clock = ("-accel", "tcg,thread=single", "-icount", "shift=2,sleep=on") if counted else ("-accel", "tcg")
    shared = (
        ("root", str(machine.root), "security_model=passthrough,readonly=on,multidevs=remap"),
        ("out", str(out), "security_model=passthrough"),
    )
    modules = Path("/") / (kernel.base.resolve() / "lib/modules").relative_to(machine.root)
    command = [
        # It ends with whoever started it.
        "setpriv", "--pdeathsig", "KILL",
        machine.program, *clock, *machine.hardware, "-m", MEMORY, "-smp", str(cpus),
        "-nographic", "-nodefaults", "-serial", "stdio", "-no-reboot",
        "-kernel", str(kernel.image), "-initrd", str(initrd),
        # On a loaded machine ticks come so late that the kernel takes its timer for broken, and panics.
        "-append", f"console={machine.console} quiet panic=-1 no_timer_check modules={modules}",
        "-drive", f"file={disk},if=virtio,format=raw,cache=unsafe", "-device", "virtio-rng-pci",
    ]  # fmt: skip
    for name, path, options in shared:
        command += ["-fsdev", f"local,id={name},path={path},{options}"]
        command += ["-device", f"virtio-9p-pci,fsdev={name},mount_tag={name}"]
    return command


def _initrd(machine: Machine, kernel: Unpacked, work: Path) -> Path:
    """Return the archive from which the kernel starts: busybox, our init, and the modules in order."""
    archive = work / "initrd"
    if archive.exists() and archive.stat().st_mtime > (HERE / "init").stat().st_mtime:
        return archive
    _run(["depmod", "-b", str(kernel.base), kernel.release])
    with tempfile.TemporaryDirectory(dir=work) as room:
        root = Path(room)
        (root / "bin").mkdir()
        shutil.copy(machine.busybox, root / "bin/busybox")
        shutil.copy(HERE / "init", root / "init")
        (root / "init").chmod(0o755)
        names = []
        for module in MODULES:
            asked = ["modprobe", "-d", str(kernel.base), "-S", kernel.release, "--show-depends", module]
            done = subprocess.run(asked, capture_output=True, text=True, check=False)
            # One that is built in, or that this version lacks, has nothing to load.
            names += re.findall(r"^insmod (\S+)", done.stdout, re.MULTILINE)
        order = list(dict.fromkeys(names))
        for number, name in enumerate(order):
            shutil.copy(name, root / f"{number:02}-{Path(name).name}")
        (root / "modules").write_text("".join(f"/{n:02}-{Path(name).name}\n" for n, name in enumerate(order)), "utf-8")
        pack = f"cd {room} && find . | cpio -oH newc --quiet | gzip -1 >{archive}"
        _run(["sh", "-c", pack])
    return archive


def _run(command: list[str]) -> None:
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PATH": path})
    if done.returncode:
        raise ClusterError(f"{command[0]} failed: {done.stderr.strip()}")
