"""The spec of piolet-squashfuse: that it is one, that it builds from the release it names only, and what comes of it.

The release is upstream's, and nothing here fetches it: where it lies in build/squashfuse-VERSION.tar.gz it is built.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from piolet.container.fuse import is_of_fuse_2

from tests.support.rpm import query, run
from tools.rpm import ROOT, SPEC

SQUASHFUSE = SPEC.with_name("piolet-squashfuse.spec")
PLACE = "/usr/libexec/piolet/squashfuse"


def build(work: Path, source: Path, *options: str, spec: Path = SQUASHFUSE) -> subprocess.CompletedProcess[str]:
    """Run rpmbuild with a file in the place of the release."""
    (work / "SOURCES").mkdir(parents=True)
    shutil.copyfile(source, work / "SOURCES" / f"squashfuse-{version()}.tar.gz")
    words = ["rpmbuild", *options, "--nodeps", "--define", f"_topdir {work}", str(spec)]
    environment = os.environ | {"LC_ALL": "C.UTF-8"}
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=300, env=environment)


def version() -> str:
    return run("rpmspec", "-q", "--srpm", "--qf", "%{VERSION}", SQUASHFUSE).stdout


def test_it_is_a_spec() -> None:
    said = run("rpmspec", "-P", SQUASHFUSE).stdout
    name = re.escape(f"squashfuse-{version()}.tar.gz")
    assert re.search(rf"^Source0: +https://\S+/{name}$", said, re.MULTILINE)
    assert len(re.findall(r"\b[0-9a-f]{64}\b", said)) == 1 and "pkgconfig(fuse3)" in said
    lint = run("rpmlint", "-c", SQUASHFUSE.with_name("rpmlint.toml"), SQUASHFUSE, check=False)
    assert lint.returncode == 0 and " 0 errors, 0 warnings" in lint.stdout, lint.stdout


def test_no_other_file_is_built_from(tmp_path: Path) -> None:
    """Not even unpacked: the file is compared first."""
    (tmp_path / f"squashfuse-{version()}").mkdir()
    (tmp_path / f"squashfuse-{version()}/configure").write_text("#!/bin/sh\n")
    other = tmp_path / "other.tar.gz"
    subprocess.run(["tar", "-C", tmp_path, "-czf", other, f"squashfuse-{version()}"], check=True)
    done = build(tmp_path / "work", other, "-bp")
    assert done.returncode != 0 and "is not the release that this spec was written for" in done.stderr, done
    assert not list((tmp_path / "work").glob("BUILD/**/configure"))


@pytest.mark.parametrize("library", ["libfuse3.so.3", "libm.so.6"])
def test_what_is_not_of_fuse_3_is_no_package(tmp_path: Path, library: str) -> None:
    """Where FUSE 3 is not found, squashfuse's configure takes what else there is. A stand-in for the release."""
    source = tmp_path / f"squashfuse-{version()}"
    source.mkdir()
    (source / "configure").write_text("#!/bin/sh\n")
    (source / "configure").chmod(0o755)
    (source / "LICENSE").write_text("none\n")
    (source / "main.c").write_text("int main(void) { return 0; }\n")
    link = f"$(CC) $(CFLAGS) -o $@ main.c -Wl,--no-as-needed -l:{library}"
    (source / "Makefile").write_text(f"squashfuse:\n\t{link}\n")
    archive = tmp_path / "stand-in.tar.gz"
    subprocess.run(["tar", "-C", tmp_path, "-czf", archive, source.name], check=True)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    spec = tmp_path / SQUASHFUSE.name
    spec.write_text(re.sub(r"(?m)^(%global release_sha256) .*$", rf"\1 {digest}", SQUASHFUSE.read_text("utf-8")))
    done = build(tmp_path / "work", archive, "-bb", spec=spec)
    made = [path for path in (tmp_path / "work").rglob("*.rpm") if "debug" not in path.name]
    if library != "libfuse3.so.3":
        assert done.returncode != 0 and made == [], done
        return
    assert done.returncode == 0 and len(made) == 1, done.stderr[-2000:]
    assert {PLACE, str(Path(PLACE).parent)} <= set(query(made[0], "-l"))
    assert any(line.startswith("libfuse3.so.3") for line in query(made[0], "--requires"))


def test_no_two_packages_have_a_file_in_common() -> None:
    """piolet-node has what begins with piolet- in that directory, and not the directory with all that is in it."""
    files = SPEC.read_text("utf-8").split("%files node\n")[1].split("\n\n")[0].splitlines()
    assert "%dir %{piolet_libexec}" in files and "%{piolet_libexec}" not in files
    assert "%{piolet_libexec}/squashfuse" in SQUASHFUSE.read_text("utf-8").splitlines()


def test_the_release_is_built_with_fuse_3(tmp_path: Path) -> None:
    release = ROOT / "build" / f"squashfuse-{version()}.tar.gz"
    if not release.exists():
        pytest.skip(f"{release.name}, upstream's release, is not in build/")
    if subprocess.run(["pkg-config", "--exists", "fuse3"], check=False).returncode:
        pytest.skip("the headers of FUSE 3 are not installed (libfuse3-dev)")
    done = build(tmp_path, release, "-bb", "--noclean")
    assert done.returncode == 0, done.stderr[-2000:]
    (package,) = (path for path in (tmp_path / "RPMS").rglob("*.rpm") if "debug" not in path.name)
    assert PLACE in query(package, "-l")
    (program,) = (tmp_path / "BUILDROOT").rglob("squashfuse")
    assert not is_of_fuse_2(str(program))
    shown = subprocess.run([program, "--help"], capture_output=True, text=True, check=False)
    assert f"squashfuse {version()}" in shown.stdout + shown.stderr
