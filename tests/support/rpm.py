"""Packages, and root directories into which they are installed: what the tests of the RPMs work with."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

BUSYBOX = Path("/bin/busybox")
PROGRAMS = ("rpm", "rpmbuild", "rpmlint", "git", "strip", "unshare")
CALLS = "calls"
STAND_INS = ("systemctl", "systemd-sysusers", "systemd-tmpfiles")
TIMEOUT_S = 120


def missing() -> list[str]:
    """Return what is not installed of what these tests need."""
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    return absent + ([] if BUSYBOX.exists() else ["busybox (busybox-static)"])


def run(*command: str | Path, check: bool = True, cwd: str | Path = "/") -> subprocess.CompletedProcess[str]:
    """Run a command; return what it wrote. Fails the test with it when the command fails, unless told otherwise."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=TIMEOUT_S, cwd=cwd)
    assert done.returncode == 0 or not check, f"{words} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done


def query(package: Path, *options: str) -> list[str]:
    """Return what `rpm -qp` says of a package file, a string a line."""
    return run("rpm", "-qp", *options, package).stdout.splitlines()


@dataclass(frozen=True)
class Packages:
    """The packages of one build, by their names without 'piolet-'."""

    paths: dict[str, Path]

    @classmethod
    def of(cls, paths: Sequence[Path]) -> Packages:
        return cls({path.name.split("-")[1]: path for path in paths})

    def __getitem__(self, name: str) -> Path:
        return self.paths[name]

    def files(self, name: str) -> dict[str, str]:
        """Return the files and directories of a package: path to 'mode owner group', the mode as of stat, octal."""
        lines = query(self[name], "--qf", "[%{FILENAMES}\\t%{FILEMODES:octal} %{FILEUSERNAME} %{FILEGROUPNAME}\\n]")
        return dict(line.split("\t") for line in lines)

    def foreign(self) -> set[str]:
        """Return what the packages require that none of them provides, without RPM's own features."""
        wanted = {line for path in self.paths.values() for line in query(path, "--requires")}
        return {line for line in wanted if not re.match(r"rpmlib\(|config\(|piolet-", line)}


@dataclass(frozen=True)
class Builds:
    """Release 1, built in two places; `work` is where the first was made, and still has all of it."""

    first: Packages
    second: Packages
    work: Path


class Root:
    """A root directory with an RPM database, a shell, and nothing else; with `systemd`, programs that note calls."""

    def __init__(self, path: Path, systemd: bool = False) -> None:
        self.path = path
        for name in ("usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "etc", "var/lib/rpm", "dev"):
            (path / name).mkdir(parents=True)
        for name in ("bin", "sbin", "lib", "lib64"):
            (path / name).symlink_to(f"usr/{name}")
        for folder, _, _ in os.walk(path):
            os.chmod(folder, 0o755)
        (path / "tmp").mkdir()
        (path / "tmp").chmod(0o1777)
        shutil.copy(BUSYBOX, path / "usr/bin/sh")
        if systemd:
            self.add_systemd()
        self.rpm("--initdb")

    def add_systemd(self) -> None:
        """Add the programs of systemd that scriptlets call; each writes down how it was called."""
        for name in STAND_INS:
            program = self.path / "usr/bin" / name
            program.write_text(f'#!/bin/sh\necho "{name} $*" >>/{CALLS}\n', "ascii")
            program.chmod(0o755)

    def calls(self) -> list[str]:
        """Return how programs of systemd were called since this was asked last."""
        path = self.path / CALLS
        lines = path.read_text("ascii").splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines

    def rpm(self, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run rpm on this root; a scriptlet that fails only makes a warning of rpm's, and fails the test too."""
        words: list[str | Path] = ["rpm", "--root", self.path, "--dbpath", "/var/lib/rpm"]
        if arguments[0] in ("-i", "-U", "-e") and Path("/etc/debian_version").exists():
            words.append("--force-debian")  # its rpm warns of itself unless told that this is meant
        done = run(*words, *arguments, check=check)
        # What RPM says of files that it kept is as it should be.
        said = re.sub(r"^warning: \S+ (created|saved) as \S+\n", "", done.stderr, flags=re.MULTILINE)
        assert not check or not said, said
        return done

    def file(self, path: str) -> Path:
        return self.path / path.lstrip("/")

    def tree(self) -> set[str]:
        """Return the path of everything there is, but for RPM's database."""
        found = set()
        for folder, folders, files in os.walk(self.path):
            found |= {"/" + os.path.relpath(os.path.join(folder, name), self.path) for name in (*folders, *files)}
        return {path for path in found if not path.startswith("/var/lib/rpm/")}

    def chroot(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command as nobody in this root, the machine's /usr under its own: that has the interpreter."""
        script = (
            'mount -t overlay overlay -o "lowerdir=$0/usr:/usr" "$0/usr" && mount --bind /dev "$0/dev" && '
            'exec chroot --userspec=65534:65534 --groups= "$0" "$@"'
        )
        inside = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]
        return run(*inside, self.path, *command, check=check)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


SYSTEM_SPEC = """
Name: {name}
Version: 1
Release: 1
Summary: Stands for packages of the system
License: none
BuildArch: noarch
{provides}
%description
Stands for packages of the system.
%files
"""


def stand_in(directory: Path, name: str, provides: Sequence[str]) -> Path:
    """Build a package without files that provides what it is told; return its path."""
    directory.mkdir(parents=True, exist_ok=True)
    spec = directory / f"{name}.spec"
    lines = "\n".join(f"Provides: {line}" for line in provides)
    spec.write_text(SYSTEM_SPEC.format(name=name, provides=lines), "utf-8")
    run("rpmbuild", "-bb", "--define", f"_topdir {directory}", spec)
    return next((directory / "RPMS").rglob(f"{name}-1-1*.rpm"))
