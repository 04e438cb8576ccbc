"""The demo image: Python and NumPy from the packages of the distribution that this machine runs.

Made once by mmdebstrap, kept as an OCI layout in the cache, shared by all clusters of a checkout. It can be made for
another architecture than this machine's where the kernel runs that one's programs by an emulator (tools/arm64).
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tools.cluster import oci
from tools.cluster.errors import ClusterError
from tools.cluster.packages import find
from tools.cluster.processes import FIXED_PATH
from tools.cluster.state import locked

BUILD_TIMEOUT_S = 900
MARKER = "/etc/piolet-demo-image"
MARKER_TEXT = "piolet demo image 1.0"
PACKAGES = ("python3-numpy",)

# What no demo needs. Directories that a package's own scripts look into must stay until those ran,
# so what belongs to Python goes in the hook.
EXCLUDED = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*", "/usr/lib/*/gconv/*")
MERGED_USR_HOOKS = Path("/usr/share/mmdebstrap/hooks/maybe-merged-usr")
CUSTOMIZE = (
    f'echo "{MARKER_TEXT}" >"$1{MARKER}"',
    ': >"$1/etc/resolv.conf"; : >"$1/etc/hostname"; : >"$1/etc/hosts"',
    'find "$1/usr/lib/python3/dist-packages" -depth -type d -name tests -exec rm -rf {} +',
    'rm -rf "$1"/var/cache/* "$1"/var/log/*',
)

ENV = ("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8")
TAG = "1.0"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "ppc64le": "ppc64le", "s390x": "s390x", "riscv64": "riscv64"}


@dataclass(frozen=True)
class Source:
    """Where packages come from: the suite of this machine's distribution at its own mirror."""

    suite: str
    mirror: str


def parse_os_release(text: str) -> dict[str, str]:
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line and not line.startswith("#"))
    return {name: value.strip("\"'") for name, _, value in pairs}


def choose_source(codename: str, targets: str) -> Source:
    """Return the mirror of the suite `codename` among the lines "RELEASE COMPONENT SITE" of apt's own list.

    Raises ClusterError when the machine's apt does not know the suite.
    """
    for line in targets.splitlines():
        fields = line.split()
        if len(fields) == 3 and fields[0] == codename and fields[1] == "main":
            return Source(codename, fields[2])
    raise ClusterError(
        f"apt on this machine has no source for the component main of '{codename}'",
        "look at /etc/apt/sources.list and /etc/apt/sources.list.d, then run: apt-get update",
    )


def find_source() -> Source:
    release = parse_os_release(Path("/etc/os-release").read_text("utf-8"))
    codename = release.get("VERSION_CODENAME", "")
    argv = ["apt-get", "indextargets", "--format", "$(RELEASE) $(COMPONENT) $(SITE)", "Created-By: Packages"]
    result = subprocess.run(argv, capture_output=True, text=True, check=False)
    return choose_source(codename, result.stdout)


def apt_options(dump: str) -> list[str]:
    """Return from `apt-config dump` what says how to get at a mirror: proxies, certificates, retries, age."""
    wanted = ("Acquire::http::", "Acquire::https::", "Acquire::Retries", "Acquire::Check-Valid-Until")
    return [line.rstrip(";") for line in dump.splitlines() if line.startswith(wanted) and '""' not in line]


def command(
    source: Source, target: Path, architecture: str | None = None, packages: Sequence[str] = PACKAGES
) -> list[str]:
    """Return the mmdebstrap command that writes the root file system as a tar file."""
    argv = [
        find("mmdebstrap"),
        *([f"--architectures={architecture}"] if architecture else []),
        "--variant=essential",
        f"--include={','.join(packages)}",
        "--skip=output/dev",
    ]
    if MERGED_USR_HOOKS.is_dir():
        argv.append(f"--hook-dir={MERGED_USR_HOOKS}")  # else a package that does it at run time brings all of Perl
    dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=False).stdout
    argv += [f"--aptopt={option}" for option in apt_options(dump)]
    argv += [f"--dpkgopt=path-exclude={pattern}" for pattern in EXCLUDED]
    argv += [f"--customize-hook={line}" for line in CUSTOMIZE]
    return [*argv, source.suite, str(target), source.mirror]


def ensure(
    cache: Path, note: Callable[[str], None], machine: str | None = None, packages: Sequence[str] = PACKAGES
) -> tuple[Path, bool]:
    """Return the OCI layout of the demo image, or one of other packages, and whether it had to be made.

    `machine` as `uname -m` says it.
    """
    machine = machine or platform.machine()
    architecture = ARCHITECTURES.get(machine)
    if architecture is None:
        raise ClusterError(f"the demo image is not made for the architecture {machine}")
    source = find_source()
    recipe = [asdict(source), packages, EXCLUDED, CUSTOMIZE, ENV, TAG, architecture]
    key = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:12]
    directory = cache / f"demo-image-{key}"
    with locked(cache / "demo-image.lock", "the demo image", BUILD_TIMEOUT_S):
        if oci.read_digest(directory, TAG) is not None:
            return directory, False
        _make(source, architecture, directory, packages, note)
    return directory, True


def _make(
    source: Source, architecture: str, directory: Path, packages: Sequence[str], note: Callable[[str], None]
) -> None:
    mine = ARCHITECTURES.get(platform.machine())
    directory.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(directory, ignore_errors=True)
    for stale in directory.parent.glob("demo-image-part-*"):
        shutil.rmtree(stale, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="demo-image-part-", dir=directory.parent) as work_name:
        work = Path(work_name)
        log = directory.parent / "demo-image.log"
        note(f"making it of {source.suite}'s {', '.join(packages)} (once; about half a minute)")
        environment = {"PATH": FIXED_PATH, "LANG": "C.UTF-8", "HOME": "/root", "TMPDIR": str(work)}
        # With a fixed time the same packages give the same image, digest and all.
        environment["SOURCE_DATE_EPOCH"] = "0"
        environment |= {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
        work.chmod(0o755)
        with log.open("wb") as output:
            try:
                result = subprocess.run(
                    command(source, work / "root.tar", None if architecture == mine else architecture, packages),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    check=False,
                    timeout=BUILD_TIMEOUT_S,
                    env=environment,
                )
            except subprocess.TimeoutExpired:
                raise ClusterError(f"mmdebstrap did not finish in {BUILD_TIMEOUT_S} s", log=log) from None
        if result.returncode != 0:
            raise ClusterError(f"mmdebstrap failed with status {result.returncode}", log=log)
        note("packing it")
        config = oci.ImageConfig(architecture, ENV, command=("python3",))
        oci.write_layout(work / "layout", TAG, work / "root.tar", config)
        (work / "layout").rename(directory)
