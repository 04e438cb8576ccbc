"""Builds Piolet's RPMs: python -m tools.rpm [--output DIR] [--release N] [--define 'NAME VALUE'].

    python -m tools.rpm --sources DIR [--target MACHINE]...     only what rpmbuild wants to have in SOURCES

The wheels that the packages hold are fetched once into build/wheels, by packaging/rpm/wheels.lock; the build itself
uses no network. The sources are the files of this checkout that git tracks or would track. Every time stamp is that
of the last commit, or SOURCE_DATE_EPOCH, so that the same files give the same packages, byte for byte. Packages are
built on a machine of their own architecture; the sources can hold the wheels of several, so that one set serves all.
"""

from __future__ import annotations

import argparse
import gzip
import io
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SPEC = ROOT / "packaging" / "rpm" / "piolet.spec"
LOCK = SPEC.with_name("wheels.lock")
FETCH_S, BUILD_S = 900, 1800
MACHINES = ("x86_64", "aarch64")  # ExclusiveArch of the spec
# Of RHEL 8; what is built on a newer system runs on all that Piolet is for.
GLIBC_MINOR = 28


class RpmError(Exception):
    """What failed and where, and what to do."""

    def __init__(self, sentence: str, hint: str) -> None:
        super().__init__(sentence)
        self.hint = hint


def version() -> str:
    """Return the version that the spec says."""
    found = re.search(r"^Version:\s*(\S+)", SPEC.read_text("utf-8"), re.MULTILINE)
    if found is None:
        raise RpmError(f"{SPEC} has no Version", "put it back")
    return found[1]


def epoch() -> int:
    """Return the time of the packages, in seconds since 1970: SOURCE_DATE_EPOCH, or that of the last commit."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    return int(given) if given else int(_git("log", "-1", "--format=%ct"))


def fetch(directory: Path, machines: Sequence[str] = ()) -> None:
    """Make `directory` hold the wheels of the lock for `machines` (this one's) and nothing else; at once if it does."""
    machines = sorted(set(machines)) or [platform.machine()]
    stamp = directory / ".lock"
    wanted = sha256(LOCK.read_bytes() + sys.version.encode() + repr((machines, GLIBC_MINOR)).encode()).hexdigest()
    if stamp.exists() and stamp.read_text("ascii") == wanted:
        return
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(directory), "--requirement", str(LOCK)]
    own = (ROOT / "build" / "wheels").resolve()  # where those of this machine lie: they are fetched once
    for machine in machines:
        if machine == platform.machine() and directory.resolve() != own:
            fetch(own)
            for wheel in own.glob("*.whl"):
                shutil.copyfile(wheel, directory / wheel.name)
            continue
        what = f"fetching the wheels for {machine}"
        hint = "is a package index reachable? pip's own configuration names it"
        _run([*command, *_compatible(machine)], FETCH_S, what, hint)
    stamp.write_text(wanted, "ascii")


def _compatible(machine: str) -> list[str]:
    """Return what has pip take what this Python would run on `machine` with glibc 2.28, wherever pip itself runs."""
    version = f"{sys.version_info.major}{sys.version_info.minor}"
    tags = [f"manylinux_2_{minor}_{machine}" for minor in range(GLIBC_MINOR, 16, -1)] + [f"manylinux2014_{machine}"]
    words = ["--implementation", "cp", "--python-version", version]
    words += [word for abi in (f"cp{version}", "abi3", "none") for word in ("--abi", abi)]
    return words + [word for tag in tags for word in ("--platform", tag)]


def sources(directory: Path, wheels: Path, when: int) -> None:
    """Write what rpmbuild wants to find in SOURCES: the source, the wheels, and the lock."""
    directory.mkdir(parents=True, exist_ok=True)
    names = _git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    name = f"piolet-{version()}"
    files = [(ROOT / path, f"{name}/{path}") for path in sorted(filter(None, names)) if (ROOT / path).is_file()]
    # The middle of a gzip header would say when it was written.
    archive = gzip.compress(_tar(files, when), 6, mtime=when)
    (directory / f"{name}.tar.gz").write_bytes(archive)
    held = [(path, f"wheels/{path.name}") for path in sorted(wheels.glob("*.whl"))]
    (directory / "piolet-wheels.tar").write_bytes(_tar(held, when))
    shutil.copyfile(LOCK, directory / LOCK.name)


def _tar(files: Iterable[tuple[Path, str]], when: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path, name in files:
            entry = tarfile.TarInfo(name)
            entry.size = path.stat().st_size
            entry.mode = 0o755 if os.access(path, os.X_OK) else 0o644
            entry.mtime = when
            with path.open("rb") as content:
                archive.addfile(entry, content)
    return buffer.getvalue()


def build(work: Path, wheels: Path, release: str, *options: str) -> list[Path]:
    """Build the packages in the directory `work`, which is made anew; return their paths, which are in it."""
    if shutil.which("rpmbuild") is None:
        raise RpmError("the program rpmbuild is not installed", "it is in the package rpm-build, or rpm on Debian")
    shutil.rmtree(work, ignore_errors=True)
    sources(work / "SOURCES", wheels, epoch())
    return rpmbuild(work, release, *options)


def rpmbuild(work: Path, release: str, *options: str) -> list[Path]:
    """Run rpmbuild where the sources are already; return the packages of this release."""
    command = ["rpmbuild", "-bb", *options, "--define", f"_topdir {work}", "--define", f"piolet_release {release}"]
    command += ["--define", f"piolet_python {interpreter()}"]
    if shutil.which("dpkg") is not None:
        # What the spec needs is installed here by another package manager, so RPM does not know of it.
        command.append("--nodeps")
    environment = os.environ | {"SOURCE_DATE_EPOCH": str(epoch()), "LC_ALL": "C.UTF-8", "TZ": "UTC"}
    log = work / "build.log"
    _run([*command, str(SPEC)], BUILD_S, "rpmbuild", f"all of it is in {log}", log, environment)
    return sorted((work / "RPMS").rglob(f"*-{release}.*.rpm"))


def interpreter() -> str:
    """Return the system's interpreter of this version, under the name that the packages will ask for."""
    return f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}"


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        raise RpmError(f"git says of {ROOT}: {done.stderr.strip()}", "packages are built from a git checkout")
    return done.stdout.strip()


def _run(
    command: list[str], limit_s: int, what: str, hint: str, log: Path | None = None, env: dict[str, str] | None = None
) -> None:
    """Run a command quietly; its last lines follow when it fails."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", check=False, timeout=limit_s, env=env,
    )  # fmt: skip
    if log is not None:
        log.write_text(done.stdout, "utf-8")
    if done.returncode:
        last = "".join(f"\n  | {line}" for line in done.stdout.splitlines()[-15:])
        raise RpmError(f"{what} failed with status {done.returncode}; its last lines:{last}", hint)


def main(arguments: Sequence[str]) -> int:
    """Build what the command line asks for; the only place that prints."""
    parser = argparse.ArgumentParser(prog="python -m tools.rpm", description="Build Piolet's RPMs.")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "rpm", help="where the packages go")
    parser.add_argument("--release", default="1", help="their release number (default: 1)")
    parser.add_argument("--define", action="append", default=[], metavar="'NAME VALUE'", help="what the spec can set")
    parser.add_argument("--sources", type=Path, help="only write the sources, for an rpmbuild of your own")
    parser.add_argument("--target", action="append", choices=MACHINES, help="with --sources: hold this one's wheels")
    chosen = parser.parse_args(arguments)
    if chosen.target and not chosen.sources:
        parser.error("--target is of --sources: packages are built on a machine of their own architecture")
    wheels = (ROOT / "build" / "wheels").resolve()
    try:
        changed = _git("status", "--porcelain")
        if changed:
            print(f"packed as they are, though not committed:\n{changed}", file=sys.stderr)
        if chosen.sources:
            # Beside the wheels of builds here, which are of this machine alone.
            wheels = wheels.with_name("wheels-of-sources") if chosen.target else wheels
            fetch(wheels, chosen.target or ())
            sources(chosen.sources, wheels, epoch())
            return 0
        fetch(wheels)
        work = (ROOT / "build" / "rpmbuild").resolve()
        options = [word for one in chosen.define for word in ("--define", one)]
        made = build(work, wheels, chosen.release, *options)
        chosen.output.mkdir(parents=True, exist_ok=True)
        for old in chosen.output.glob("piolet-*.rpm"):
            old.unlink()
        for path in made:
            print(shutil.move(path, chosen.output / path.name))
        shutil.rmtree(work)
    except RpmError as error:
        print(f"{error}\nhint: {error.hint}", file=sys.stderr)
        return 1
    except subprocess.TimeoutExpired as error:
        print(f"{error.cmd[0]} had not ended after {error.timeout:.0f} s", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
