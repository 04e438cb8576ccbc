"""Which programs must be there. The packages that hold them are listed, and installed, by `tools/bootstrap.sh`."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from tools.cluster.errors import ClusterError
from tools.cluster.layout import REPOSITORY
from tools.cluster.processes import FIXED_PATH

PROGRAMS = (
    "slurmctld",
    "slurmd",
    "srun",
    "sbatch",
    "sinfo",
    "scancel",
    "munged",
    "docker-registry",
    "skopeo",
    "mksquashfs",
    "mmdebstrap",
    "nsenter",
    "setpriv",
    "useradd",
)
ACCOUNTING = ("mariadbd", "mariadb-install-db", "my_print_defaults", "slurmdbd", "sacct", "sacctmgr")


def find(program: str) -> str:
    """Return the path of a program. Raises ClusterError when it is not installed."""
    path = shutil.which(program, path=FIXED_PATH)
    if path is None:
        raise ClusterError(f"the program {program} is not installed", "run: tools/bootstrap.sh packages")
    return path


def missing(programs: Sequence[str] = PROGRAMS) -> list[str]:
    return [name for name in programs if shutil.which(name, path=FIXED_PATH) is None]


def ensure(note: Callable[[str], None], accounting: bool = False) -> str:
    """Install what is missing with the bootstrap script; return what to say of it."""
    wanted = (*PROGRAMS, *(ACCOUNTING if accounting else ()))
    absent = missing(wanted)
    if not absent:
        return "all there"
    note(f"installing what {', '.join(absent)} come from")
    script = REPOSITORY / "tools" / "bootstrap.sh"
    for part in ("packages", *["accounting"] * accounting):
        result = subprocess.run(["/bin/sh", str(script), part], check=False, stdin=subprocess.DEVNULL)
        if result.returncode != 0:
            break
    if result.returncode != 0 or missing(wanted):
        raise ClusterError(f"these programs could not be installed: {', '.join(missing(wanted) or absent)}")
    return f"installed for {', '.join(absent)}"


def slurm_version() -> tuple[int, int]:
    """Return Slurm's major version, for example (22, 5)."""
    text = subprocess.run([find("slurmd"), "-V"], capture_output=True, text=True, check=False).stdout
    digits = text.split()[-1].split(".") if text.split() else []
    try:
        return int(digits[0]), int(digits[1])
    except (IndexError, ValueError):
        raise ClusterError(f"cannot tell the version of slurmd from '{text.strip()}'") from None


def require_root() -> None:
    if os.geteuid() != 0:
        raise ClusterError(
            "the private cluster needs root: it makes namespaces, accounts and mounts", "run it with sudo, or as root"
        )


def require_reachable(path: Path) -> None:
    """Refuse a place that an ordinary user cannot get at. The directory must exist."""
    test = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "test", "-x", str(path)]
    if subprocess.run(test, capture_output=True, check=False, cwd="/").returncode != 0:
        raise ClusterError(
            f"ordinary users cannot reach {path}", "use make, which puts build/ where they can, or another --dir"
        )
