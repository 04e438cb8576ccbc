"""Kernels of Debian's: found and downloaded by apt, unpacked below build/kernels, nothing installed.

apt works with lists of its own there, so that this machine's sources stay as they are, and a release that it does not
follow can be asked.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tools.cluster.errors import ClusterError

MIRROR = "http://deb.debian.org/debian"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
DOWNLOAD_S, ANSWER_S = 300, 20


@dataclass(frozen=True)
class Kernel:
    """A kernel to test on: `name` is that of the command line, `suite` where Debian has it."""

    name: str
    suite: str
    runs: bool = True
    """Whether containers run on it; where not, the tests are that this is said."""
    flavour: str = ""
    """What Debian calls a kernel that is not the architecture's own, "arm64-16k" say."""


KERNELS = (
    Kernel("6.1", "bookworm"),
    Kernel("6.12", "bookworm-backports"),
    Kernel("5.10", "bullseye", runs=False),
)


@dataclass(frozen=True)
class Unpacked:
    """A kernel that is there: its release as `uname -r` says it, its image, and the directory that has lib/modules."""

    release: str
    image: Path
    base: Path


class UnavailableError(ClusterError):
    """The kernel cannot be had: a test of it is left out, and says so."""


def fetch(kernel: Kernel, work: Path, mirror: str = MIRROR, architecture: str | None = None) -> Unpacked:
    """Return the kernel, downloaded and unpacked if need be, for Debian's `architecture`. Raises UnavailableError."""
    place = work / kernel.name
    found = _find(place)
    if found is not None:
        return found
    if not KEYRING.exists():
        raise UnavailableError(f"{kernel.name}: {KEYRING} is not there", "install debian-archive-keyring")
    apt = place / "apt"
    for directory in ("lists/partial", "cache/archives/partial"):
        (apt / directory).mkdir(parents=True, exist_ok=True)
    sources = apt / "sources.list"
    sources.write_text(f"deb [signed-by={KEYRING}] {mirror} {kernel.suite} main\n", "utf-8")
    architecture = architecture or _run(["dpkg", "--print-architecture"], place, kernel).strip()
    options = [
        f"Dir::Etc::sourcelist={sources}", "Dir::Etc::sourceparts=-", f"Dir::State::lists={apt / 'lists'}",
        f"Dir::Cache={apt / 'cache'}", "APT::Sandbox::User=root", "Acquire::Languages=none",
        f"Acquire::http::Timeout={ANSWER_S}", "Acquire::Retries=1", "APT::Update::Error-Mode=any",
        f"APT::Architecture={architecture}", f"APT::Architectures={architecture}",
    ]  # fmt: skip
    words = [word for option in options for word in ("-o", option)]
    _run(["apt-get", "-q", *words, "update"], place, kernel)
    depends = _run(["apt-cache", *words, "depends", f"linux-image-{kernel.flavour or architecture}"], place, kernel)
    names = re.findall(r"Depends: (linux-image-\S+)", depends)
    if not names:
        raise UnavailableError(f"{kernel.name}: {kernel.suite} has no linux-image-{kernel.flavour or architecture}")
    for package in place.glob("*.deb"):
        package.unlink()
    _run(["apt-get", "-q", *words, "download", names[0]], place, kernel)
    # Under its name when it is whole, so that what was cut off is not taken for a kernel.
    coming = place / "coming"
    shutil.rmtree(coming, ignore_errors=True)
    for package in place.glob("*.deb"):
        _run(["dpkg", "-x", str(package), str(coming)], place, kernel)
        package.unlink()
    shutil.rmtree(place / "root", ignore_errors=True)
    coming.rename(place / "root")
    shutil.rmtree(apt)
    found = _find(place)
    if found is None:
        raise UnavailableError(f"{kernel.name}: {names[0]} holds no kernel")
    return found


def is_there(kernel: Kernel, work: Path) -> bool:
    """Return whether `fetch` would have nothing to do."""
    return _find(work / kernel.name) is not None


def _find(place: Path) -> Unpacked | None:
    for image in (place / "root/boot").glob("vmlinuz-*"):
        release = image.name.removeprefix("vmlinuz-")
        for base in (place / "root", place / "root/usr"):
            if (base / "lib/modules" / release / "kernel").is_dir():
                return Unpacked(release, image, base)
    return None


def _run(command: list[str], place: Path, kernel: Kernel) -> str:
    try:
        done = subprocess.run(
            command, cwd=place, capture_output=True, text=True, timeout=DOWNLOAD_S, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"{kernel.name}: {command[0]} was not done after {DOWNLOAD_S} s") from None
    except FileNotFoundError:
        raise UnavailableError(f"{kernel.name}: there is no {command[0]} on this machine") from None
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines() or [f"status {done.returncode}"]
        # Of apt's errors the first says why; others end with why.
        why = next((line for line in lines if line.startswith("E: ")), lines[-1])
        raise UnavailableError(f"{kernel.name}: {command[0]} failed: {why}")
    return done.stdout
