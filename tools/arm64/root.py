"""A root of Debian's for aarch64, below build/arm64, with this checkout built in it by qemu-user."""

from __future__ import annotations

import compileall
import json
import shutil
import subprocess
import sys
from pathlib import Path

from tools import rpm, slurm_versions
from tools.cluster import image
from tools.cluster.errors import ClusterError
from tools.slurm_versions import inside, run

ROOT = slurm_versions.ROOT
WORK = ROOT / "build" / "arm64"
HOME = WORK / "root"
PLACE = HOME / slurm_versions.PLACE
SUITE = "bookworm"
# Beside those of a private cluster: to load modules in a guest, and to build RPMs.
MORE = ("kmod", "rpm", "git")
ROOT_S, BUILD_S, ASK_S, RPM_S = 2400, 1800, 120, 2400


def make(mirror: str, again: bool, log: Path) -> Path:
    """Return the root, made if there is none or if it was made of something else. Raises ClusterError."""
    stamp = WORK / "made"
    dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=False).stdout
    options = image.apt_options(dump)
    packages = [*slurm_versions.packages(), *MORE]
    recipe = json.dumps([SUITE, mirror, packages, options])
    if not again and stamp.exists() and stamp.read_text("utf-8") == recipe:
        return HOME
    print("making a root of it (once; some minutes)", flush=True)
    stamp.unlink(missing_ok=True)
    shutil.rmtree(HOME, ignore_errors=True)
    command = ["mmdebstrap", "--architectures=arm64", "--variant=minbase", "--mode=root"]
    command += [f"--include={','.join(packages)}", *(f"--aptopt={option}" for option in options)]
    # The private cluster asks apt where its packages come from.
    command += ["--skip=cleanup/apt/lists", SUITE, str(HOME), mirror]
    run(command, log, ROOT_S, f"mmdebstrap of {SUITE} for arm64")
    stamp.write_text(recipe, "utf-8")
    return HOME


def build(log: Path) -> str:
    """Build this checkout in the root, and the demo image for it; return what was built with: Slurm, Python, gcc."""
    slurm_versions.copy_checkout(HOME)
    # What pip would compile there file by file, this machine's Python compiles, where it is of the same version.
    same = inside_text(["python3", "-c", "import sys; print(sys.implementation.cache_tag)"], log).strip()
    compiles = same == sys.implementation.cache_tag
    arguments = ["env", "PIP_NO_COMPILE=1"] if compiles else []
    inside(HOME, [*arguments, "make", "plugins"], log, BUILD_S, "the build in the root")
    if compiles:
        for packages in (PLACE / "build/venv/lib").glob("python3*/site-packages"):
            compileall.compile_dir(packages, quiet=2, stripdir=str(HOME), prependdir="/", workers=2)
    image.ensure(PLACE / "build" / "cache", lambda text: print(f"the demo image: {text}", flush=True), "aarch64")
    ask = "slurmd -V; python3 -V; gcc --version | head -n 1; file=build/plugins/piolet_environment.so; readelf -h $file"
    said = inside_text(["sh", "-c", ask], log).splitlines()
    machine = next((line.split()[-1] for line in said if line.lstrip().startswith("Machine:")), "")
    return f"{said[0]}, {said[1]}, {said[2]}; plugins of {machine}"


def rpms(log: Path) -> list[str]:
    """Build the RPMs in the root, with wheels that are fetched here; return their names. Raises ClusterError."""
    if not (HOME / rpm.interpreter().lstrip("/")).exists():
        raise ClusterError(
            f"{SUITE} has no {rpm.interpreter()}, for which wheels are fetched", "run it with its Python"
        )
    place = PLACE / "build" / "rpmbuild"
    shutil.rmtree(place, ignore_errors=True)
    try:
        when = rpm.epoch()
        rpm.fetch(WORK / "wheels", ["aarch64"])
        rpm.sources(place / "SOURCES", WORK / "wheels", when)
    except rpm.RpmError as error:
        raise ClusterError(str(error), error.hint) from None
    where = f"/{slurm_versions.PLACE}/build/rpmbuild"
    command = ["env", f"SOURCE_DATE_EPOCH={when}", "LC_ALL=C.UTF-8", "TZ=UTC", "rpmbuild", "-bb", "--nodeps"]
    for define in (f"_topdir {where}", "piolet_release 1", f"piolet_python {rpm.interpreter()}"):
        command += ["--define", define]
    inside(HOME, [*command, "packaging/rpm/piolet.spec"], log, RPM_S, "rpmbuild in the root")
    return sorted(path.name for path in (place / "RPMS").rglob("*.rpm"))


def inside_text(command: list[str], log: Path) -> str:
    """Run a command in the checkout in the root and return what it wrote to its output. Raises ClusterError."""
    said = PLACE / "build" / "said"
    said.parent.mkdir(parents=True, exist_ok=True)
    inside(HOME, ["sh", "-c", '"$@" >build/said', "sh", *command], log, ASK_S, command[0])
    return said.read_text("utf-8")
